"""Products of packed grids by integer products of bytes, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_weights import Grid, draw_grid

from pvopt_kernels import pack_rows, uniform_matmul
from pvopt_kernels.cpu import _digits
from pvopt_kernels.cpu._digits import has_fast_digits, multiply_by_digits

pytest.importorskip("numba")

from pvopt_kernels.cpu._compiled.byte_products import CODES, can_multiply_bytes

CPU = torch.device("cpu")
MOST = 127 * 256**2  # units of the largest input of a scale

needs_bytes = pytest.mark.skipif(
    not can_multiply_bytes(),
    reason="this machine has no AVX-512 VNNI and VBMI; it takes the other product",
)


def multiply(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    packed = pack_rows(grid.codes, grid.bits)
    return multiply_by_digits(x, packed, grid.scales, grid.zeros, grid.bits, x.shape[1])


@needs_bytes
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(1, 8),
    rows=st.integers(1, 9),
    scales=st.integers(1, 4),
    blocks=st.integers(1, 3),
    tokens=st.sampled_from([1, 3]),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    loud=st.sampled_from([1.0, 1e3]),
)
def test_errors_stay_within_the_units_of_the_inputs(
    seed, bits, rows, scales, blocks, tokens, symmetric, dtype, loud
):
    source = torch.Generator().manual_seed(seed)
    size = CODES * blocks
    columns = scales * size
    grid = draw_grid(
        source, CPU, torch.float32,
        bits=bits, rows=rows, columns=columns, scales=scales, symmetric=symmetric,
    )  # fmt: skip
    grid.codes[0] = 2**bits - 1  # the largest sums of bytes
    x = torch.randn(tokens, columns, generator=source)
    x[:, int(torch.randint(columns, (1,), generator=source))] *= loud
    x = x.to(dtype)
    found = multiply(x, grid)
    assert found.dtype == dtype
    dense, exact = grid.dense(), x.double()
    expected = exact @ dense.T
    # Half a unit for each code, and what rounds a sum of float32 products of codes and zeros.
    units = exact.view(tokens, scales, size).abs().amax(2) / MOST
    steps = grid.scales.double()
    codes = grid.codes.double().view(rows, scales, size).sum(2) * steps  # [rows, S]
    allowed = 0.5 * units @ codes.T
    largest = (dense.abs() + 2 * steps.repeat_interleave(size, 1) * 2**bits).T
    allowed += torch.finfo(torch.float32).eps * (exact.abs() @ largest)
    allowed += torch.finfo(dtype).eps * expected.abs()
    assert bool(((found.double() - expected).abs() <= allowed).all())


@needs_bytes
@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_are_multiplied_exactly(bits):
    """Inputs that are whole numbers of units: every digit and every place of a code counts."""
    source = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (40, CODES), generator=source)
    x = torch.randint(-MOST, MOST + 1, (1, CODES), generator=source)
    x[0, :6] = torch.tensor([MOST, 127, 128, -128, -129, 255])
    grid = Grid(codes, torch.ones(40, 1), torch.zeros(40, 1), bits)
    wanted = (codes * x).sum(1).double()
    found = multiply(x.float(), grid)[0].double()
    # Exact in integers; 16 sums of four products, and their sum, are rounded to float32.
    close = 2 * torch.finfo(torch.float32).eps * (codes * x.abs()).sum(1)
    assert bool(((found - wanted).abs() <= close).all())


@needs_bytes
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e20, 1e30])
def test_inputs_of_any_size(size):
    source = torch.Generator().manual_seed(9)
    grid = draw_grid(source, CPU, torch.float32, bits=4, columns=256, scales=2)
    x = torch.randn(1, 256, generator=source)
    # Measured: at most 6e-7 of the norm, as for sums in float32.
    expected = size * (x.double() @ grid.dense().T)
    found = multiply(size * x, grid)
    assert float((found - expected).norm()) <= 2e-6 * float(expected.norm())


@needs_bytes
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("symmetric", [False, True])
def test_inputs_that_are_not_finite_are_seen(value, symmetric):
    source = torch.Generator().manual_seed(10)
    grid = draw_grid(source, CPU, torch.float32, bits=4, columns=256, scales=2, symmetric=symmetric)
    x = torch.randn(2, 256, generator=source)
    x[1, 77] = value
    found = multiply(x, grid)
    assert bool(found[0].isfinite().all())
    assert not bool(found[1].isfinite().any())


def test_machines_without_products_of_bytes_decode_rows(monkeypatch):
    """Both ways are within the rounding of float32 of each other, and only one makes digits."""
    source = torch.Generator().manual_seed(11)
    grid = draw_grid(source, CPU, torch.float32, bits=3, rows=200, columns=512, scales=4)
    x = torch.randn(2, 512, generator=source)
    arguments = x, pack_rows(grid.codes, 3), grid.scales, grid.zeros
    made: list[int] = []

    def counted(*arguments: object) -> torch.Tensor:
        made.append(1)
        return multiply_by_digits(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("pvopt_kernels.cpu.uniform_matmul.multiply_by_digits", counted)
    by_digits = uniform_matmul(*arguments, bits=3, columns=512)
    assert len(made) == can_multiply_bytes()
    name = "pvopt_kernels.cpu._compiled.byte_products.can_multiply_bytes"
    monkeypatch.setattr(name, lambda: False)
    by_rows = uniform_matmul(*arguments, bits=3, columns=512)
    assert len(made) == can_multiply_bytes()
    assert float((by_digits - by_rows).norm()) <= 2e-6 * float(by_rows.norm())


@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "scales"),
    [
        (_digits._TOKENS + 1, 4096, 4096, 1),
        (_digits._TOKENS_OF_SMALL + 1, 100, 4096, 1),
        (1, 100, 4096, 128),
        (1, 100, 96, 1),
    ],
)
def test_what_digits_are_not_for(tokens, rows, columns, scales):
    assert not has_fast_digits(tokens, torch.empty(rows, scales), columns)
    assert has_fast_digits(16, torch.empty(4096, 64), 4096) == can_multiply_bytes()
    assert has_fast_digits(1, torch.empty(1, 1), 64) == can_multiply_bytes()
