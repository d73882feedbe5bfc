"""The largest or the smallest entries of long rows, in order."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .jit import jit
from .parallel import ParallelLoop
from .vectors import at_most, load, lowest_bit, spread

__all__ = ["extremes_kernel"]

_LANES = 16
_DIGIT = 11  # bits of a rank that are looked at together
_WORST = (1 << 32) - 1  # the rank of NaN
_ZERO = 1 << 31
_INFINITY = 0x7F800000


@jit
def rank(bits, largest):
    """Return a number below 2^32 by the bits of a float32: the lower, the better; zeros are one."""
    bits = np.int64(bits)
    magnitude = bits & 0x7FFFFFFF
    if magnitude > _INFINITY:
        return np.int64(_WORST)
    rising = magnitude if bits >= 0 else -magnitude
    return _ZERO - rising if largest else _ZERO + rising


@jit
def bits_of(rank, largest):
    """Return the bits of the float32 of a rank, or of the worst infinity beyond it."""
    rising = _ZERO - rank if largest else rank - _ZERO
    rising = max(-_INFINITY, min(_INFINITY, rising))
    return rising if rising >= 0 else -rising - _ZERO


@jit
def bound(ranks, size, place, counts):
    """Return a number that more than ``place`` of some ranks do not exceed, and few others."""
    prefix = np.int64(0)
    for shift in (32 - _DIGIT, 32 - 2 * _DIGIT):
        counts[:] = 0
        for i in range(size):
            if ranks[i] >> (shift + _DIGIT) == prefix:
                counts[(ranks[i] >> shift) & ((1 << _DIGIT) - 1)] += 1
        digit = 0
        while place >= counts[digit]:
            place -= counts[digit]
            digit += 1
        prefix = (prefix << _DIGIT) | digit
    return ((prefix + 1) << (32 - 2 * _DIGIT)) - 1


@jit
def sort(ranks, places, more_ranks, more_places, size, counts):
    """Sort by rank, stably; the result is in the second pair of arrays."""
    for turn in range(3):
        shift = turn * _DIGIT
        counts[:] = 0
        for i in range(size):
            counts[(ranks[i] >> shift) & ((1 << _DIGIT) - 1)] += 1
        start = 0
        for digit in range(1 << _DIGIT):
            start, counts[digit] = start + counts[digit], start
        for i in range(size):
            digit = (ranks[i] >> shift) & ((1 << _DIGIT) - 1)
            at = counts[digit]
            counts[digit] = at + 1
            more_ranks[at], more_places[at] = ranks[i], places[i]
        ranks, more_ranks = more_ranks, ranks
        places, more_places = more_places, places


@functools.cache
def extremes_kernel(largest: bool) -> ParallelLoop:
    """Return the loop over rows.

    Its arguments are flat arrays: keys, their bits as int32, entries of a row, entries wanted,
    distance of the entries of a sample, the place in the sorted sample of one that a few more than
    the wanted entries reach, output values and indices.
    """

    def kernel(keys, bits, m, k, stride, place, values, indices, size, parts):
        for part in prange(parts):
            sample = np.empty(-(-m // stride), np.int64)
            counts = np.empty(1 << _DIGIT, np.int64)
            ranks, more_ranks = np.empty(m, np.int64), np.empty(m, np.int64)
            found, more_found = np.empty(m, np.int64), np.empty(m, np.int64)
            limit_bits = np.empty(1, np.int32)
            limit = limit_bits.view(np.float32)
            for n in range(size * part // parts, size * (part + 1) // parts):
                first = n * m
                for i in range(len(sample)):
                    sample[i] = rank(bits[first + i * stride], largest)
                limit_bits[0] = bits_of(bound(sample, len(sample), place, counts), largest)
                edge = spread(limit[0], _LANES)
                passed = 0
                whole = m - m % _LANES
                for e in range(0, whole, _LANES):
                    now = load(keys, first + e, _LANES)
                    hits = at_most(edge, now) if largest else at_most(now, edge)
                    while hits != 0:
                        found[passed] = e + lowest_bit(hits)
                        hits &= hits - 1
                        passed += 1
                for i in range(whole, m):
                    key = keys[first + i]
                    if key >= limit[0] if largest else key <= limit[0]:
                        found[passed] = i
                        passed += 1
                if passed < k:  # an unlucky sample, or NaN
                    passed = m
                    for i in range(m):
                        found[i] = i
                for i in range(passed):
                    ranks[i] = rank(bits[first + found[i]], largest)
                sort(ranks, found, more_ranks, more_found, passed, counts)
                for i in range(k):
                    index = more_found[i]
                    indices[n * k + i] = index
                    values[n * k + i] = keys[first + index]

    return ParallelLoop(kernel)
