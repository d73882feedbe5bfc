"""uniform_decode against float64 NumPy, and the packing of its codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_weights import draw_grid

from pvopt_kernels import pack_rows, uniform_decode, unpack_rows
from pvopt_kernels.packing import row_bytes

GRIDS = {
    "2 bits": {"bits": 2},
    "3 bits in groups of 16": {"bits": 3, "scales": 3},
    "4 bits, symmetric": {"bits": 4, "symmetric": True},
    "3 bits in groups of 6": {"bits": 3, "scales": 8},
    "3 bits, rows that end within a byte": {"bits": 3, "columns": 37, "rows": 7},
    "2 bits, odd groups": {"bits": 2, "columns": 35, "scales": 5},
    "1 bit": {"bits": 1, "columns": 13, "symmetric": True},
    "8 bits": {"bits": 8},
    "5 bits, many columns": {"bits": 5, "columns": 1100, "rows": 2},
}


@pytest.mark.parametrize("name", GRIDS)
def test_uniform_decode_equals_float64(kind, name, precision, generator, guard, device):
    grid = draw_grid(generator(1), device, precision.dtype, **GRIDS[name])
    packed = pack_rows(grid.codes, grid.bits)
    zeros = None if grid.zeros is None else guard(grid.zeros)
    found = uniform_decode(
        guard(packed), guard(grid.scales), zeros, bits=grid.bits, columns=grid.codes.shape[1]
    )
    assert found.dtype == precision.dtype
    precision.close(found, grid.dense(), scale=2.0**grid.bits)


def test_ragged_rows(kind, ragged, generator, guard, device):
    grid = draw_grid(generator(2), device, torch.float32, bits=3, rows=ragged, columns=9)
    packed = guard(pack_rows(grid.codes, 3))
    found = uniform_decode(packed, guard(grid.scales), guard(grid.zeros), bits=3, columns=9)
    torch.testing.assert_close(found.cpu(), grid.dense().float())


def test_no_columns(kind, device):
    packed = torch.zeros(3, 0, dtype=torch.uint8, device=device)
    scales = torch.ones(3, 1, device=device)
    assert uniform_decode(packed, scales, None, bits=2, columns=0).shape == (3, 0)


def test_any_memory_layout(kind, generator, device):
    grid = draw_grid(generator(3), device, torch.float32, bits=2, rows=6, columns=32)
    packed = pack_rows(grid.codes, 2).T.contiguous().T[::2]
    scales = grid.scales.expand(-1, 4)[::2]
    zeros = grid.zeros.expand(-1, 4)[::2]
    found = uniform_decode(packed, scales, zeros, bits=2, columns=32)
    torch.testing.assert_close(found.cpu(), grid.dense()[::2].float())


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients(symmetric, generator, device):
    grid = draw_grid(
        generator(4), device, torch.float64, bits=3, columns=12, scales=3, symmetric=symmetric
    )
    packed = pack_rows(grid.codes, 3)
    values = [v.requires_grad_() for v in (grid.scales, grid.zeros) if v is not None]
    assert torch.autograd.gradcheck(
        lambda s, z=None: uniform_decode(packed, s, z, bits=3, columns=12), values
    )


def test_errors(generator):
    grid = draw_grid(generator(6), torch.device("cpu"), torch.float32, bits=2)
    packed, scales = pack_rows(grid.codes, 2), grid.scales
    with pytest.raises(ValueError, match=r"bits must be in 1\.\.8, got 9"):
        uniform_decode(packed, scales, None, bits=9, columns=48)
    with pytest.raises(ValueError, match=r"packed must have shape \[rows, 12\], got \[5, 11\]"):
        uniform_decode(packed[:, :11], scales, None, bits=2, columns=48)
    with pytest.raises(TypeError, match="packed must be uint8"):
        uniform_decode(packed.int(), scales, None, bits=2, columns=48)
    with pytest.raises(TypeError, match=r"zeros must be torch\.float32 like scales"):
        uniform_decode(packed, scales, scales.half(), bits=2, columns=48)
    with pytest.raises(ValueError, match="divides 48, got 5"):
        uniform_decode(packed, scales.expand(-1, 5), None, bits=2, columns=48)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    bits=st.integers(1, 24),
    rows=st.integers(0, 4),
    columns=st.integers(0, 40),
    seed=st.integers(0, 2**31),
)
def test_rows_are_streams_of_bits(bits, rows, columns, seed):
    """Against Python's integers: a row is one number, least significant bits first."""
    codes = torch.randint(2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = pack_rows(codes, bits)
    assert packed.shape == (rows, row_bytes(columns, bits))
    for row, stream in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum(code << bits * i for i, code in enumerate(row))
        assert bytes(stream) == number.to_bytes(len(stream), "little")
    assert torch.equal(unpack_rows(packed, bits, columns).long(), codes)


def test_errors_of_packing():
    with pytest.raises(ValueError, match=r"bits must be in 1\.\.24, got 25"):
        pack_rows(torch.zeros(1, 1, dtype=torch.int32), 25)
    with pytest.raises(TypeError, match="codes must be one of"):
        pack_rows(torch.zeros(1, 1), 2)
    with pytest.raises(ValueError, match=r"packed must have shape \[rows, 2\], got \[1, 1\]"):
        unpack_rows(torch.zeros(1, 1, dtype=torch.uint8), 2, 5)
    with pytest.raises(TypeError, match="packed must be uint8"):
        unpack_rows(torch.zeros(1, 1), 2, 4)
