"""What tests of kernels share.

A module ``test_NAME.py`` tests the operation ``NAME``. A test that asks for ``kind`` runs once for
each implementation that exists (Triton kernels in Triton's interpreter, or compiled on a GPU with
``TRITON_INTERPRET=0``). Every tensor that code under test allocates is poisoned and has guard
bands, which are checked when the test ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._dynamo import trace_rules

from pvopt_kernels import dispatch, ops

sys.path.insert(0, str(Path(__file__).parent))  # for quantized_weights

GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "0"
BAND = 64  # entries; a multiple of 16, so that alignment stays


@dataclass(frozen=True)
class Precision:
    """A dtype of arguments, and how far results may be from a float64 reference.

    Inputs are exact in the dtype and sums are taken in float32, so results in float32 differ by
    float32 rounding whatever the dtype of the inputs. Results in the dtype itself differ by one
    unit in its last place; for bfloat16 that is 2^-7, because Triton's interpreter truncates where
    a GPU rounds to nearest (measured: 25 of 64 values differ in the last bit). The interpreter
    computes products and dots of bfloat16 from the raw bits, so kernels convert to float32 first
    (also faster on GPUs, but for tensor cores, which are compiled for bfloat16 and interpreted for
    float16).
    """

    dtype: torch.dtype
    atol: float
    rtol: float

    def close(self, found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
        """Compare; ``scale`` is the size of the terms that were summed."""
        exact = self.dtype if found.dtype == self.dtype else torch.float32
        unit = torch.finfo(exact).eps
        atol = max(self.atol if exact == self.dtype else 0.0, 8 * unit) * scale
        rtol = max(self.rtol if exact == self.dtype else 0.0, 8 * unit)
        torch.testing.assert_close(
            found.double().cpu(), expected.double().cpu(), atol=atol, rtol=rtol
        )


PRECISIONS = [
    Precision(torch.float32, 1e-6, 1e-6),
    Precision(torch.float16, 1e-3, 2**-9),
    Precision(torch.bfloat16, 1e-2, 2**-7),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        kinds = list(dispatch.available(_operation(metafunc.module)))
        metafunc.parametrize("kind", kinds, indirect=True)


def _operation(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2].removeprefix("test_")


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device) -> str:
    """Choose an implementation through the environment variable."""
    kind = request.param
    if kind == "cpu" and device.type != "cpu":
        pytest.skip("the implementation for CPUs, on a GPU")
    if kind == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and kernels are not interpreted")
    monkeypatch.setenv("PVOPT_KERNELS", kind)
    return kind


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU if there is one and kernels are compiled, else the CPU."""
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture(params=PRECISIONS, ids=lambda p: str(p.dtype).removeprefix("torch."))
def precision(request: pytest.FixtureRequest) -> Precision:
    """A dtype with its tolerances."""
    return request.param


@pytest.fixture(params=[0, 1, 7, 41, 257])
def ragged(request: pytest.FixtureRequest) -> int:
    """Numbers of rows or groups: none, one, and primes on both sides of blocks."""
    return request.param


@pytest.fixture(scope="session")
def generator() -> Callable[[int], torch.Generator]:
    """Return a function that seeds a generator on the CPU: same inputs on every device."""
    return lambda seed: torch.Generator().manual_seed(seed)


def _poison(tensor: Tensor) -> Tensor:
    if tensor.dtype.is_floating_point:
        return tensor.fill_(float("nan"))
    return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)


@pytest.fixture(scope="session")
def guard() -> Callable[[Tensor], Tensor]:
    """Return a function that copies an argument into memory with NaN or huge codes around it.

    A kernel that reads beyond the argument, and uses what it read, gets a wrong result.
    """

    def surround(tensor: Tensor) -> Tensor:
        size = tensor.numel()
        whole = _poison(tensor.new_empty(size + 2 * BAND))
        inside = whole[BAND : BAND + size].view(tensor.shape)
        return inside.copy_(tensor)

    return surround


@pytest.fixture(autouse=True)
def guard_bands(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Poison what ``torch.empty`` and its kin return, and check the bands around it at the end.

    An output that is not written stays NaN or huge; a write beyond it changes a band.
    """
    if _operation(request.module) not in ops.__all__:
        yield  # torch's own checks of custom ops look at storages
        return
    allocated: list[tuple[Tensor, int]] = []
    # Dynamo keeps a table of torch's functions from its first use on: it must see the true ones.
    trace_rules.get_torch_obj_rule_map()
    empty = torch.empty

    def guarded(*size, dtype=None, device=None, **options):
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        if options or torch.compiler.is_compiling() or not all(type(s) is int for s in shape):
            return empty(*size, dtype=dtype, device=device, **options)
        total = int(torch.Size(shape).numel())
        whole = empty(total + 2 * BAND, dtype=dtype, device=device)
        if type(whole) is not Tensor:  # a fake tensor
            return empty(*size, dtype=dtype, device=device)
        allocated.append((_poison(whole), total))
        return whole[BAND : BAND + total].view(shape)

    def like(tensor, *, dtype=None, device=None, **options):
        options.pop("memory_format", None)
        return new(tensor, *tensor.shape, dtype=dtype, device=device, **options)

    def new(tensor, *size, dtype=None, device=None, **options):
        dtype, device = dtype or tensor.dtype, device or tensor.device
        return guarded(*size, dtype=dtype, device=device, **options)

    # The first time, torch looks up by which functions tensors get a default device, and remembers.
    with torch.device("cpu"):
        torch.zeros(0)
    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(torch, "empty_like", like)
    monkeypatch.setattr(Tensor, "new_empty", new)
    yield
    monkeypatch.undo()
    for whole, total in allocated:
        for band in (whole[:BAND], whole[BAND + total :]):
            assert torch.equal(band.nan_to_num(-1.0), _poison(band.clone()).nan_to_num(-1.0)), (
                f"a write beyond a tensor of {total} entries"
            )
