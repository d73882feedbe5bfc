"""The counts of the roofline cover the kernels, and agree with tensors of the same sizes."""

from __future__ import annotations

import pytest
import torch

from benchmarks.kernels import gpu
from benchmarks.kernels.roofline import GPUS, floor
from benchmarks.kernels.workloads import LAYERS, Layer, Work, workloads
from pvopt_kernels import dispatch, ops
from pvopt_kernels.tools import ahead_of_time


def test_every_kernel_that_is_compiled_has_a_workload():
    pytest.importorskip("triton")
    specs = [spec for found in ahead_of_time.discover().values() for spec in found]
    compiled = {spec.kernel.__name__ for spec in specs}
    works = list(workloads(Layer("m", "l", 64, 64)))
    counted = {work.kernel for work in works}
    # The transposed product has the counts of the other; sums over scales are part of the gradient.
    assert compiled - counted <= {"matmul_transposed_kernel", "value_sums_kernel"}
    for work in works:
        labels = [spec.label for spec in specs if spec.kernel.__name__ == work.kernel]
        if labels:
            found = [label for label in labels if label.startswith(work.variant)]
            assert found, f"{work.kernel} has no variant {work.variant}, only {labels}"


def test_workloads_are_operations():
    assert {work.operation for work in workloads(LAYERS[0])} <= set(ops.__all__)


def test_bytes_are_those_of_the_tensors():
    layer = Layer("m", "l", 16, 32)
    works = {(work.operation, work.case): work for work in workloads(layer)}
    dense = torch.zeros(16, 32)
    norms = ops.group_sq_norms(dense, dense, out_group=1, in_group=8)
    assert works["group_sq_norms", "1x8 float32"].memory == 2 * dense.nbytes + norms.nbytes
    codes = torch.zeros(16, 4, 2, dtype=torch.uint8)
    weight = ops.decode(codes, torch.zeros(2, 256, 8), torch.ones(16, 1))
    assert works["decode", "2x8g8 to 32 bits"].memory == codes.nbytes + weight.nbytes
    tokens = torch.zeros(16, 32, dtype=torch.bfloat16)
    out = tokens @ weight.bfloat16().T
    memory = codes.nbytes + tokens.nbytes + out.nbytes
    assert works["matmul", "2x8g8 16 bits 16 tokens"].memory == memory


def test_the_floor_is_the_scarcest_resource():
    a100 = GPUS[0]
    assert floor(Work("x", "", "", "", 2.039e12, 0), a100) == (1.0, "memory")
    assert floor(Work("x", "", "", "", 0, 39e12), a100) == (2.0, "arithmetic")
    assert floor(Work("x", "", "", "", 0, 312e12, tensor_cores=True), a100) == (1.0, "tensor cores")
    assert floor(Work("x", "", "", "", 1, 1, on_chip=a100.on_chip), a100) == (1.0, "lookups")


CHECKED = list(workloads(gpu.CHECKED))


@pytest.mark.parametrize("work", CHECKED, ids=lambda w: f"{w.operation} {w.case}")
def test_calls_of_the_gpu_benchmark_run_here(work):
    """On a CPU, where two implementations of torch agree: the calls are right when a GPU comes."""
    if work.settings.get("tokens") == 4096 or work.settings.get("entries") == 65536:
        pytest.skip("another size of a case that runs")
    kinds = [kind for kind in dispatch.available(work.operation) if kind != "triton"]
    error, same = gpu.compare(work, gpu.CHECKED, torch.device("cpu"), kinds[-1])
    assert error < 2e-2
    assert same


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_timed(capsys):
    assert gpu.main(["--quick"]) == 1
    assert "no GPU" in capsys.readouterr().err
