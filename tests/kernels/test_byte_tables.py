"""Products by tables of bytes, for cores that permute bytes, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_weights import draw_books
from torch import Tensor

from pvopt_kernels import matmul
from pvopt_kernels.cpu import _tables
from pvopt_kernels.cpu._tables import multiply_by_tables

pytest.importorskip("numba")

from pvopt_kernels.cpu._compiled.byte_tables import POSITIONS, ROWS, can_permute_bytes, offset

needs_bytes = pytest.mark.skipif(
    not can_permute_bytes(), reason="this machine has no AVX-512 VBMI; it takes the other product"
)


def furthest(x: Tensor, codes: Tensor, books: Tensor, planes: int) -> Tensor:
    """Return the error that tables of so many bytes allow, ``[tokens, 1]``, before scales.

    A table's entry is off by half a unit of its block, and by what rounds a float32 product.
    """
    tokens, (_, cols, number) = len(x), codes.shape
    norms = books.double().norm(dim=2).amax(1)
    sizes = x.double().view(tokens, cols, 1, -1).norm(dim=3)
    bounds = (sizes * norms).view(tokens, -1)  # [tokens, cols * M]
    starts = [*range(0, cols * number - POSITIONS, POSITIONS), cols * number - POSITIONS]
    blocks = torch.stack([bounds[:, i : i + POSITIONS].amax(1) for i in starts], 1)
    unit = 0.5 / (0.999 * offset(planes)) + 4 * torch.finfo(torch.float32).eps
    return POSITIONS * unit * blocks.sum(1, keepdim=True)


@needs_bytes
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(ROWS, 3 * ROWS + 1),
    cols=st.integers(POSITIONS, 3 * POSITIONS + 1),
    books=st.integers(1, 3),
    entries=st.sampled_from([1, 2, 63, 64, 65, 128, 200, 256, 300]),
    group_size=st.sampled_from([1, 3, 4, 8, 16]),
    tokens=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    loud=st.sampled_from([1.0, 1e3]),
)
def test_errors_stay_within_the_units_of_the_tables(
    seed, rows, cols, books, entries, group_size, tokens, dtype, loud
):
    source = torch.Generator().manual_seed(seed)
    weight = draw_books(
        source, torch.device("cpu"), torch.float32,
        rows=rows, cols=cols, books=books, entries=entries, in_group=group_size,
    )  # fmt: skip
    x = torch.randn(tokens, cols * group_size, generator=source)
    x[:, int(torch.randint(cols, (1,), generator=source)) * group_size] *= loud
    x = x.to(dtype)
    found = multiply_by_tables(x, *weight.args)
    assert found.dtype == dtype
    expected = x.double() @ weight.dense().T
    planes = 3 if dtype == torch.float32 else 2
    allowed = furthest(x, weight.codes, weight.codebooks, planes) * weight.scales.T
    allowed = allowed + expected.abs() * torch.finfo(dtype).eps
    assert bool(((found.double() - expected).abs() <= allowed).all())


@needs_bytes
def test_every_code_finds_its_entry():
    """One input counts, so that each row reads a single entry: integers, read exactly."""
    codes = torch.zeros(256, POSITIONS + 3, 1, dtype=torch.uint8)
    book = torch.randperm(256, generator=torch.Generator().manual_seed(0)).float().view(1, 256, 1)
    for place in (0, 15, 16, 47, 63, POSITIONS + 2):
        x = torch.zeros(1, POSITIONS + 3)
        x[0, place] = 1.0
        one = codes.clone()
        one[:, place, 0] = torch.arange(256)
        found = multiply_by_tables(x, one, book, torch.ones(256, 1))
        # In units of 255 / (0.999 * 2**22); the entries of 63 other tables are zero.
        np.testing.assert_allclose(found[0], book.flatten(), atol=4e-5)


@needs_bytes
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e20, 1e30])
def test_inputs_of_any_size(size):
    source = torch.Generator().manual_seed(1)
    weight = draw_books(source, torch.device("cpu"), torch.float32, rows=70, cols=40, entries=256)
    x = torch.randn(1, 320, generator=source)
    # Measured: at most 6e-7 of the norm, as for sums in float32.
    expected = size * (x.double() @ weight.dense().T)
    found = multiply_by_tables(size * x, *weight.args)
    assert float((found - expected).norm()) <= 2e-6 * float(expected.norm())


@needs_bytes
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(value):
    source = torch.Generator().manual_seed(2)
    weight = draw_books(source, torch.device("cpu"), torch.float32, rows=70, cols=40, entries=256)
    x = torch.randn(2, 320, generator=source)
    x[1, 77] = value
    found = multiply_by_tables(x, *weight.args)
    assert bool(found[0].isfinite().all())
    assert not bool(found[1].isfinite().any())
    weight.codebooks[0, 5, 3] = value
    assert not bool(multiply_by_tables(x[:1], *weight.args).isfinite().any())


def test_machines_without_byte_permutations_multiply_from_the_codes(monkeypatch):
    """Both ways are within the rounding of float32 of each other, and only one makes tables."""
    source = torch.Generator().manual_seed(3)
    device = torch.device("cpu")
    weight = draw_books(source, device, torch.float32, rows=1024, cols=160, entries=256)
    x = torch.randn(1, 1280, generator=source)
    made: list[int] = []

    def counted(*arguments: Tensor) -> Tensor:
        made.append(1)
        return multiply_by_tables(*arguments)

    monkeypatch.setattr("pvopt_kernels.cpu.matmul.multiply_by_tables", counted)
    by_tables = matmul(x, *weight.args)
    assert len(made) == can_permute_bytes()
    monkeypatch.setattr("pvopt_kernels.cpu._compiled.byte_tables.can_permute_bytes", lambda: False)
    from_codes = matmul(x, *weight.args)
    assert len(made) == can_permute_bytes()
    assert float((by_tables - from_codes).norm()) <= 2e-6 * float(from_codes.norm())


@pytest.mark.parametrize(
    ("tokens", "rows", "cols", "scales", "codes"),
    [
        (_tables._TOKENS + 1, 1024, 160, 1, torch.uint8),
        (1, 1023, 160, 1, torch.uint8),
        (1, 1024, 127, 1, torch.uint8),
        (1, 1024, 160, 2, torch.uint8),
        (1, 1024, 160, 1, torch.int16),
    ],
)
def test_what_tables_are_not_for(tokens, rows, cols, scales, codes):
    narrow = torch.zeros(rows, cols, 2, dtype=codes)
    assert not _tables.has_fast_tables(tokens, narrow, torch.ones(rows, scales))
    fits = torch.zeros(1024, 160, 2, dtype=torch.int8)
    assert _tables.has_fast_tables(1, fits, torch.ones(1024, 1)) == can_permute_bytes()
