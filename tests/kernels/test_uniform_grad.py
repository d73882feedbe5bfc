"""uniform_grad against float64 sums over the weights of each scale."""

from __future__ import annotations

import pytest
import torch
from quantized_weights import draw_grid

from pvopt_kernels import pack_rows, uniform_grad

GRIDS = {
    "2 bits": {"bits": 2},
    "3 bits in groups of 16": {"bits": 3, "scales": 3},
    "4 bits, symmetric": {"bits": 4, "symmetric": True, "scales": 6},
    "3 bits in groups of 6": {"bits": 3, "scales": 8},
    "3 bits, rows that end within a byte": {"bits": 3, "columns": 37, "rows": 7},
    "5 bits, many columns": {"bits": 5, "columns": 2200, "rows": 2, "scales": 2},
}


def expected_grads(grid, gradient) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales, slope = (t.double().cpu() for t in (grid.codes, grid.scales, gradient))
    shape = (*scales.shape, -1)
    zeros = torch.full_like(scales, 2 ** (grid.bits - 1))
    if grid.zeros is not None:
        zeros = grid.zeros.double().cpu()
    level, slope = codes.view(shape) - zeros[..., None], slope.view(shape)
    return (slope * level).sum(-1), -scales * slope.sum(-1)


@pytest.mark.parametrize("name", GRIDS)
def test_uniform_grad_equals_float64(kind, name, precision, generator, guard, device):
    grid = draw_grid(generator(1), device, precision.dtype, **GRIDS[name])
    gradient = torch.randn(grid.codes.shape, generator=generator(2)).to(device, precision.dtype)
    packed, zeros = pack_rows(grid.codes, grid.bits), grid.zeros
    zeros = None if zeros is None else guard(zeros)
    found = uniform_grad(guard(gradient), guard(packed), guard(grid.scales), zeros, bits=grid.bits)
    for grad, expected in zip(found, expected_grads(grid, gradient), strict=True):
        assert grad.dtype == precision.dtype
        precision.close(grad, expected, scale=float(expected.abs().max()))


def test_nothing(kind, device):
    for rows, columns in ((0, 8), (3, 0)):
        packed = torch.zeros(rows, columns // 4, dtype=torch.uint8, device=device)
        scales = torch.ones(rows, 1, device=device)
        found = uniform_grad(
            torch.zeros(rows, columns, device=device), packed, scales, None, bits=2
        )
        assert [f.tolist() for f in found] == [[[0.0]] * rows] * 2


def test_errors(generator):
    grid = draw_grid(generator(4), torch.device("cpu"), torch.float32, bits=2)
    packed = pack_rows(grid.codes, 2)
    with pytest.raises(ValueError, match=r"gradient must have shape \[5, columns\], got \[4, 48\]"):
        uniform_grad(torch.zeros(4, 48), packed, grid.scales, grid.zeros, bits=2)
    with pytest.raises(TypeError, match="gradient must be one of"):
        uniform_grad(torch.zeros(5, 48, dtype=torch.int8), packed, grid.scales, None, bits=2)
