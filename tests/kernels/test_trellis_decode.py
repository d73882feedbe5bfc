"""Weights of sequences against a table of the states, and their gradients."""

from __future__ import annotations

import pytest
import torch

from pvopt_kernels import trellis_decode, trellis_states

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
# Bits, values, state bits, steps (fewer than a state reads, among them).
SIZES = [(1, 1, 2, 1), (2, 1, 5, 7), (4, 2, 8, 64), (3, 1, 12, 2)]


@pytest.mark.parametrize(("bits", "values", "state_bits", "steps"), SIZES)
@pytest.mark.parametrize("rows", [0, 1, 41])
def test_a_weight_is_the_table_at_its_state(
    kind, precision, rows, bits, values, state_bits, steps, generator, guard, device
):
    table = torch.randn(1 << state_bits, values, generator=generator(1)).to(precision.dtype)
    symbols = torch.randint(1 << bits, (rows, steps), generator=generator(2))
    states = trellis_states(symbols, symbol_bits=bits, state_bits=state_bits)
    wanted = table[states.long()].flatten(1)
    for dtype in (torch.uint8, torch.int64):
        given = guard(symbols.to(device, dtype))
        found = trellis_decode(given, guard(table.to(device)), symbol_bits=bits)
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_symbols_of_too_many_bits_are_cut_off(kind, dtype, device):
    """No symbol reads memory beyond the table."""
    table = torch.arange(16.0, device=device)[:, None]
    symbols = torch.tensor([[125, 3, 2, 1, 0, 127]], device=device)
    wild = symbols if dtype != torch.int64 else symbols + 4 * 10**9
    found = trellis_decode(wild.to(dtype), table, symbol_bits=2)
    assert torch.equal(found, trellis_decode(symbols & 3, table, symbol_bits=2))


def test_the_gradient_of_the_table(generator):
    table = torch.randn(32, 2, generator=generator(1), dtype=torch.float64, requires_grad=True)
    symbols = torch.randint(4, (3, 6), generator=generator(2))
    assert torch.autograd.gradcheck(lambda t: trellis_decode(symbols, t, symbol_bits=2), (table,))


def test_bad_arguments_are_refused():
    symbols, table = torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(16, 1)
    for wrong, message in [
        ({"table": table[:12]}, "table must have a power of two of rows, got 12"),
        ({"symbol_bits": 9}, r"symbol_bits must be in 1\.\.8, got 9"),
        ({"symbols": symbols[0]}, r"symbols must have shape \[n, steps\], got \[4\]"),
        ({"table": table[:, 0]}, r"table must have shape \[states, V\], got \[16\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            trellis_decode(**{"symbols": symbols, "table": table, "symbol_bits": 2} | wrong)
    with pytest.raises(TypeError, match="symbols must be one of"):
        trellis_decode(symbols.float(), table, symbol_bits=2)


def test_it_passes_the_checks_of_custom_operators(monkeypatch):
    monkeypatch.undo()  # the checks have their own way with memory
    table = torch.randn(16, 1, generator=torch.Generator().manual_seed(5), requires_grad=True)
    symbols = torch.randint(4, (3, 6), generator=torch.Generator().manual_seed(6))
    torch.library.opcheck(
        torch.ops.pvopt.trellis_decode.default, (symbols, table, 2), test_utils=CHECKS
    )
