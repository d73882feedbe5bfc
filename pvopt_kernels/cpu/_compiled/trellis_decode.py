"""Weights of sequences of symbols: a state that shifts, and a table."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import item

__all__ = ["decode_kernel"]


@functools.cache
def decode_kernel() -> ParallelLoop:
    """Return the loop over sequences.

    Its arguments are flat arrays: symbols ``[n, steps]``, table ``[2**L, V]``, bits of a symbol,
    ``L``, ``V``, the number of steps, output ``[n, steps * V]``.
    """

    def kernel(symbols, table, symbol_bits, state_bits, values, steps, out, size, parts):
        for part in prange(parts):
            cut = (1 << symbol_bits) - 1
            mask = (1 << state_bits) - 1
            before = -(-state_bits // symbol_bits)
            for n in range(size * part // parts, size * (part + 1) // parts):
                state, place = 0, (-before) % steps
                for _ in range(before):  # around the circle, as often as it takes
                    state = state << symbol_bits | item(symbols, n * steps + place) & cut
                    place = place + 1 if place + 1 < steps else 0
                for step in range(steps):
                    state = (state << symbol_bits | item(symbols, n * steps + step) & cut) & mask
                    for v in range(values):
                        out[(n * steps + step) * values + v] = table[state * values + v]

    return ParallelLoop(kernel)
