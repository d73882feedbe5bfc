"""Weights of sequences of symbols: states, then a table."""

from __future__ import annotations

from torch import Tensor

from pvopt_kernels.trellis_states import trellis_states

__all__ = ["trellis_decode"]


def trellis_decode(symbols: Tensor, table: Tensor, *, symbol_bits: int) -> Tensor:
    """Return weights ``[n, steps * V]``; see :func:`pvopt_kernels.trellis_decode`."""
    state_bits = len(table).bit_length() - 1
    states = trellis_states(symbols, symbol_bits=symbol_bits, state_bits=state_bits)
    return table.index_select(0, states.flatten()).view(
        len(symbols), symbols.shape[1] * table.shape[1]
    )
