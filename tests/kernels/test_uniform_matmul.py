"""uniform_matmul against float64 products with the dense weight."""

from __future__ import annotations

import sys

import pytest
import torch
from quantized_weights import draw_grid

from pvopt_kernels import pack_rows, uniform_matmul

GRIDS = {
    "2 bits": {"bits": 2},
    "3 bits in groups of 6": {"bits": 3, "scales": 8, "rows": 40},
    "4 bits, symmetric": {"bits": 4, "symmetric": True, "scales": 3},
    "3 bits, rows that end within a byte": {"bits": 3, "columns": 37, "rows": 7},
    "5 bits": {"bits": 5, "rows": 3},
}


def draw_x(generator, device, dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize("name", GRIDS)
def test_uniform_matmul_equals_float64(
    kind, name, tokens, transposed, precision, generator, guard, device
):
    grid = draw_grid(generator(1), device, precision.dtype, **GRIDS[name])
    rows, columns = grid.codes.shape
    x = draw_x(generator(2), device, precision.dtype, tokens, rows if transposed else columns)
    dense = grid.dense() if transposed else grid.dense().T
    found = uniform_matmul(
        guard(x),
        guard(pack_rows(grid.codes, grid.bits)),
        guard(grid.scales),
        None if grid.zeros is None else guard(grid.zeros),
        bits=grid.bits,
        columns=columns,
        transposed=transposed,
    )
    assert found.dtype == x.dtype
    terms = float((x.double().cpu().abs() @ dense.abs()).max())
    precision.close(found, x.double().cpu() @ dense, scale=terms / 4)


def test_no_tokens_and_no_columns(kind, generator, device):
    grid = draw_grid(generator(3), device, torch.float32, bits=2)
    packed = pack_rows(grid.codes, 2)
    options = {"bits": 2, "columns": 48}
    none = uniform_matmul(torch.ones(0, 48, device=device), packed, grid.scales, None, **options)
    assert none.shape == (0, 5)
    found = uniform_matmul(
        torch.ones(2, 0, device=device), packed[:, :0], grid.scales, None, bits=2, columns=0
    )
    assert found.tolist() == [[0.0] * 5] * 2


def test_leading_dimensions(kind, generator, device):
    grid = draw_grid(generator(4), device, torch.float32, bits=2)
    x = draw_x(generator(5), device, torch.float32, 2, 3, 48)
    packed = pack_rows(grid.codes, 2)
    found = uniform_matmul(x, packed, grid.scales, grid.zeros, bits=2, columns=48)
    expected = x.double().cpu() @ grid.dense().T
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1 << 24, 24])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients(symmetric, transposed, block, generator, device, monkeypatch):
    module = sys.modules["pvopt_kernels.ops.uniform_matmul"]
    monkeypatch.setattr(module, "GRADIENT_BLOCK", block)
    grid = draw_grid(
        generator(6), device, torch.float64, bits=3, columns=12, scales=3, symmetric=symmetric
    )
    packed = pack_rows(grid.codes, 3)
    x = draw_x(generator(7), device, torch.float64, 2, 5 if transposed else 12)
    inputs = [t.requires_grad_() for t in (x, grid.scales, grid.zeros) if t is not None]

    def run(x, scales, zeros=None):
        return uniform_matmul(x, packed, scales, zeros, bits=3, columns=12, transposed=transposed)

    assert torch.autograd.gradcheck(run, inputs)


def test_errors(generator):
    grid = draw_grid(generator(11), torch.device("cpu"), torch.float32, bits=2)
    packed = pack_rows(grid.codes, 2)
    with pytest.raises(ValueError, match=r"x must have shape \[tokens, 48\], got \[3, 40\]"):
        uniform_matmul(torch.zeros(3, 40), packed, grid.scales, None, bits=2, columns=48)
    x = torch.zeros(3, 48, dtype=torch.int32)
    with pytest.raises(TypeError, match="x must be one of"):
        uniform_matmul(x, packed, grid.scales, None, bits=2, columns=48)
