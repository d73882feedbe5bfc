"""What only a GPU shows: races, compiled products, capture in a graph. `make gpu` runs this."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.kernels.calls import call_of
from benchmarks.kernels.gpu import CHECKED, compare
from benchmarks.kernels.workloads import workloads
from pvopt_kernels import dispatch

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "0",
    reason="no GPU, or kernels are interpreted (TRITON_INTERPRET is not 0)",
)

WORKS = [work for work in workloads(CHECKED) if "triton" in dispatch.available(work.operation)]
EACH = pytest.mark.parametrize("work", WORKS, ids=lambda w: f"{w.operation} {w.case}")


@EACH
def test_kernels_agree_with_their_references_and_with_themselves(work):
    """Five runs are the same bit for bit: sums are taken in a fixed order, and nothing races."""
    error, same = compare(work, CHECKED, torch.device("cuda"), "triton")
    assert error < 2e-2
    assert same


@EACH
def test_kernels_can_be_captured_in_a_graph(work, monkeypatch):
    """Nothing waits for the GPU or reads from it."""
    monkeypatch.setenv("PVOPT_KERNELS", "triton")
    run = call_of(CHECKED, work, torch.device("cuda"))
    expected = run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    graph.replay()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_on_tensor_cores_find_the_nearest_entries(dtype, monkeypatch):
    from pvopt_kernels.ops import assign

    source = torch.Generator().manual_seed(0)
    target = torch.randn(1000, 8, generator=source).to("cuda", dtype)
    codebook = torch.randn(3000, 8, generator=source).to("cuda", dtype)
    monkeypatch.setenv("PVOPT_KERNELS", "reference")
    expected = assign(target, codebook, 4)[1]
    monkeypatch.setenv("PVOPT_KERNELS", "triton")
    torch.testing.assert_close(assign(target, codebook, 4)[1], expected, rtol=1e-4, atol=1e-5)
