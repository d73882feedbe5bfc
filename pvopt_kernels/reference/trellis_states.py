"""States of a trellis: symbols, each shifted by those that entered after it."""

from __future__ import annotations

from torch import Tensor

__all__ = ["trellis_states"]


def trellis_states(symbols: Tensor, *, symbol_bits: int, state_bits: int) -> Tensor:
    """Return states ``[n, steps]`` int32; see :func:`pvopt_kernels.trellis_states`."""
    wide = symbols.int() & ((1 << symbol_bits) - 1)
    states = wide.clone()
    for back in range(1, -(-state_bits // symbol_bits)):
        states |= wide.roll(back, 1) << (symbol_bits * back)
    return states & ((1 << state_bits) - 1)
