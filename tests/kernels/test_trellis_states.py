"""States and tables of trellises against their definitions, bit by bit."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt_kernels import hybrid_index, trellis_states, trellis_table


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    data=st.data(),
    bits=st.integers(1, 8),
    state_bits=st.integers(2, 20),
    steps=st.integers(1, 24),
)
def test_a_state_is_the_last_bits_of_the_circle(data, bits, state_bits, steps):
    """Written as text: the circle of bits, and the window that ends with a symbol."""
    if state_bits < 2 * bits:
        with pytest.raises(ValueError, match="state_bits must be in"):
            trellis_states(torch.zeros(1, 1).int(), symbol_bits=bits, state_bits=state_bits)
        return
    symbols = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=steps, max_size=steps))
    circle = "".join(format(x, f"0{bits}b") for x in symbols) * (2 + state_bits // (bits * steps))
    after = [len(circle) - bits * (steps - 1 - t) for t in range(steps)]
    wanted = [int(circle[end - state_bits : end], 2) for end in after]
    for dtype in (torch.uint8, torch.int32, torch.int64):
        given_ = torch.tensor([symbols], dtype=dtype)
        found = trellis_states(given_, symbol_bits=bits, state_bits=state_bits)
        assert found.dtype == torch.int32
        assert found[0].tolist() == wanted


def by_hand(code: str, state: int) -> float:
    """The formula in Python's integers."""
    if code in ("3inst", "mcg"):
        x = 89226354 * state + 64248484 if code == "3inst" else 0xCBAC1FED * state
        kept = (x & 0x8FFF8FFF) ^ 0x3B603B60
        low, high = struct.unpack("<ee", struct.pack("<I", kept))
        return struct.unpack("<e", struct.pack("<e", low + high))[0]
    x = 0x83DCD12D * state if code == "mul1" else 34038481 * state + 76625530
    total = sum(struct.pack("<I", x % 2**32))
    if code == "mul1":  # halves that ExLlamaV3 names by their bits, multiplied and added
        factor, offset = struct.unpack("<ee", bytes.fromhex("ee1e31c9"))
        return struct.unpack("<e", struct.pack("<e", (1024 + total) * factor + offset))[0]
    return (total - 510) / 147.8005


@pytest.mark.parametrize("code", ["3inst", "mcg", "mul1", "1mad"])
def test_tables_are_the_formulas(code):
    table = trellis_table(code, 16)
    wanted = torch.tensor([by_hand(code, state) for state in range(1 << 16)], dtype=torch.float64)
    torch.testing.assert_close(table, wanted.float(), rtol=1e-7, atol=0)
    assert torch.equal(trellis_table(code, 12), table[: 1 << 12])
    assert abs(float(table.mean())) < 0.01
    assert 0.99 < float(table.std()) < 1.25
    assert 2.6 < float(((table / table.std()) ** 4).mean()) < 3.1  # near the Gaussian's 3


def test_the_hybrid_code_reads_pairs_and_a_sign():
    pairs, signs = hybrid_index(16, 9)
    for state in range(0, 1 << 16, 7):
        x = (state * state + state) % 2**32
        assert pairs[state] == (x >> 6) % 512
        assert signs[state].tolist() == [-1.0 if x >> 15 & 1 else 1.0, 1.0]
    assert len(pairs.unique()) == 512


def test_unknown_codes_and_other_arguments_are_refused():
    with pytest.raises(ValueError, match="code must be one of 3inst, mcg, mul1, 1mad, got 'hyb'"):
        trellis_table("hyb", 12)
    for bits in (0, 25):
        with pytest.raises(ValueError, match=rf"state_bits must be in 1\.\.24, got {bits}"):
            trellis_table("mul1", bits)
        with pytest.raises(ValueError, match=rf"state_bits must be in 1\.\.24, got {bits}"):
            hybrid_index(bits, 9)
    with pytest.raises(ValueError, match=r"table_bits must be in 1\.\.15, got 16"):
        hybrid_index(16, 16)
    with pytest.raises(TypeError, match=r"state_bits must be an int, got 2\.0"):
        trellis_table("mul1", 2.0)
    with pytest.raises(TypeError, match="symbols must be one of"):
        trellis_states(torch.zeros(1, 4), symbol_bits=1, state_bits=2)
    with pytest.raises(ValueError, match=r"symbols must have shape \[n, steps\]"):
        trellis_states(torch.zeros(4, dtype=torch.int64), symbol_bits=1, state_bits=2)
