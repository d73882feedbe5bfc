"""Distances of a point to many entries of a codebook, and the best of them."""

from __future__ import annotations

import numpy as np

from .jit import jit
from .vectors import at_most, least, load, lowest_bit, pick, spread, store

__all__ = ["LANES", "bound", "insert", "nearest", "score"]

# Entries scored at once; tables of entries are padded to a multiple with infinity.
LANES = 16


@jit
def score(columns, place, padded, point, weights, group_size, weighted):
    """Return the squared distances of a point to ``LANES`` entries, as a vector."""
    result = spread(columns.dtype.type(0), LANES)
    for i in range(group_size):
        gap = spread(point[i], LANES) - load(columns, place + i * padded, LANES)
        result = result + (gap * gap * spread(weights[i], LANES) if weighted else gap * gap)
    return result


@jit
def nearest(columns, first, padded, point, weights, numbers, group_size, weighted):
    """Return the least squared distance and the entry, of equal ones the first."""
    minima = spread(columns.dtype.type(np.inf), LANES)
    block = spread(np.int32(0), LANES)
    for e in range(0, padded, LANES):
        now = score(columns, first + e, padded, point, weights, group_size, weighted)
        block = pick(now, minima, spread(np.int32(e), LANES), block)
        minima = pick(now, minima, now, minima)
    store(numbers, 0, block)
    value, entry = least(minima), np.int64(padded)
    bits = at_most(minima, spread(value, LANES))
    while bits != 0:  # of equal distances the first entry
        i = lowest_bit(bits)
        bits &= bits - 1
        entry = min(entry, np.int64(numbers[i]) + i)
    return value, entry


@jit
def bound(lanes, k, infinity):
    """Return a number that at least ``k`` of some lanes do not exceed, the least without ties."""
    nothing = spread(infinity, LANES)
    limit = least(lanes)
    for _ in range(1, k):
        lanes = pick(spread(limit, LANES), lanes, lanes, nothing)  # without the least ones
        limit = least(lanes)
    return limit


@jit
def insert(value, beam, entry, best, parents, found, keep):
    """Put a combination into the sorted list of the best, behind equal ones."""
    i = keep - 1
    while i > 0 and best[i - 1] > value:
        best[i], parents[i], found[i] = best[i - 1], parents[i - 1], found[i - 1]
        i -= 1
    best[i], parents[i], found[i] = value, beam, entry
