"""copy_into against copies of torch, for every implementation."""

from __future__ import annotations

import pytest
import torch
from stacks import LAYOUTS, lay_out

from pvopt_kernels import copy_into
from pvopt_kernels.cpu import copy_into as streaming


@pytest.fixture
def always_streamed(monkeypatch):
    """Let pieces be small, and copies of a few numbers go past the caches."""
    monkeypatch.setattr(streaming, "_CACHED", 1)
    monkeypatch.setattr(streaming, "_PIECE", 64)


@pytest.mark.usefixtures("always_streamed")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [[1], [16], [64, 63], [41, 3, 200]])
def test_tensors_are_copied_and_nothing_beside_them(kind, device, layout, sizes):
    source = torch.Generator().manual_seed(0)
    memory = [torch.full((3, n + 32), torch.nan, device=device) for n in sizes]
    outs = lay_out(
        [m.flatten()[16 : 16 + 3 * n].view(3, n) for m, n in zip(memory, sizes, strict=True)],
        layout,
    )
    if layout == "contiguous":  # within memory that must not change, at multiples of 64 bytes
        outs = [m.flatten()[16 : 16 + 3 * n].view(3, n) for m, n in zip(memory, sizes, strict=True)]
    sources = [torch.randn(3, n, generator=source).to(device) for n in sizes]
    copy_into(outs, sources)
    for out, expected in zip(outs, sources, strict=True):
        assert torch.equal(out, expected.to(out.dtype))
    for whole, n in zip(memory, sizes, strict=True):
        kept = whole.flatten()
        assert bool(torch.cat([kept[:16], kept[16 + 3 * n :]]).isnan().all())


@pytest.mark.usefixtures("always_streamed")
def test_places_between_vectors_are_written_all_the_same(kind, device):
    out = torch.zeros(40, device=device)[1:]
    copy_into([out], [torch.ones(39, device=device)])
    assert bool((out == 1).all())


def test_autograd_notices_that_a_tensor_has_changed(kind, device):
    with torch.no_grad():
        out = torch.zeros(2, device=device)
        before = out._version
        copy_into([out], [torch.ones(2, device=device)])
    assert out._version > before


def test_errors():
    outs = [torch.zeros(4, 8)] * 2
    copy_into([], [])
    with pytest.raises(ValueError, match="sources must be 2 tensors, as many as outs, got 1"):
        copy_into(outs, outs[:1])
    with pytest.raises(ValueError, match=r"sources\[1\] must have shape \[4, 8\], got \[4, 4\]"):
        copy_into(outs, [outs[0], torch.zeros(4, 4)])
    with pytest.raises(TypeError, match=r"sources\[0\] must be one of"):
        copy_into(outs[:1], [torch.zeros(4, 8).int()])
