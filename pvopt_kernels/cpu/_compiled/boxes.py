"""Entries of a codebook in boxes: halved again and again, each box along its longest axis."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .jit import jit
from .scoring import LANES
from .vectors import load, spread, store

__all__ = ["LEAF", "boxes_kernel"]

# Entries of a box; LANES boxes make a larger one.
LEAF = 64

# Entries that decide on the axis of a box. The variance of so few may point along the second
# longest axis, which makes the search no less exact: it reads the corners of any boxes.
_SAMPLE = 64


@jit
def select(keys, start, stop, middle):
    """Reorder distinct keys so that those before ``middle`` are less than those behind it."""
    sample = np.empty(_SAMPLE, keys.dtype)
    while stop - start > 1:
        size = stop - start
        few = min(max(size >> 5, 3), _SAMPLE)
        if size < 3:
            few = size
        for i in range(few):  # sorted
            key = keys[start + i * size // few]
            j = i
            while j > 0 and sample[j - 1] > key:
                sample[j] = sample[j - 1]
                j -= 1
            sample[j] = key
        # The pivot is aimed a little past the middle, seen from the nearer end: what remains is
        # then the smaller part.
        place = (middle - start) * few // size
        shift = (few >> 5) + 1
        place += shift if 2 * (middle - start) < size else -shift
        pivot = sample[min(max(place, 0), few - 1)]
        below = start
        for i in range(start, stop):  # no branches: half of them would be mispredicted
            key = keys[i]
            keys[i] = keys[below]
            keys[below] = key
            below += key < pivot
        if below == middle:
            return
        if below > middle:
            stop = below
        elif below == start:  # the pivot is the least: it moves to the front, out of the range
            for i in range(start, stop):
                if keys[i] == pivot:
                    keys[i] = keys[start]
                    keys[start] = pivot
                    break
            start += 1
            if start == middle:
                return
        else:
            start = below


@jit
def longest_axis(points, keys, start, stop, group_size):
    """Return the axis of largest variance of some of the entries."""
    step = max(1, (stop - start) // _SAMPLE)
    origin = load(points, (keys[start] & 0xFFFFFFFF) * group_size, group_size)
    sums = squares = spread(points.dtype.type(0), group_size)
    count = 0
    for i in range(start, stop, step):
        gap = load(points, (keys[i] & 0xFFFFFFFF) * group_size, group_size) - origin
        sums = sums + gap
        squares = squares + gap * gap
        count += 1
    spreads = np.empty(group_size, points.dtype)
    weight = spread(points.dtype.type(1 / count), group_size)
    store(spreads, 0, squares - sums * sums * weight)
    axis = 0
    for i in range(1, group_size):
        if spreads[i] > spreads[axis]:
            axis = i
    return axis


@functools.cache
def boxes_kernel(group_size: int) -> Any:
    """Return the function that cuts entries into boxes.

    Its arguments are flat arrays: entries ``[boxes * LEAF, g]``, the same memory as int32, how
    many of them count (others go to infinity), 64-bit keys ``[boxes * LEAF]`` to work in, and the
    outputs that :func:`.assign.boxed_kernel` reads: columns, numbers, corners, corners of runs.
    """

    def kernel(points, bits, count, keys, columns, numbers, low, high, run_low, run_high):
        total = len(keys)
        for i in range(total):
            keys[i] = i
        width = total
        while width > LEAF:
            for start in range(0, total, width):
                axis = longest_axis(points, keys, start, start + width, group_size)
                for i in range(start, start + width):
                    entry = keys[i] & 0xFFFFFFFF
                    value = np.int64(bits[entry * group_size + axis])
                    value ^= (value >> 31) & 0x7FFFFFFF  # integers in the order of the floats
                    keys[i] = (value << 32) | entry
                select(keys, start, start + width, start + width // 2)
            width //= 2
        infinity = points.dtype.type(np.inf)
        run_low[:] = infinity
        run_high[:] = -infinity
        runs = len(run_low) // group_size  # padded
        for box in range(total // LEAF):
            run, lane = box // LANES, box % LANES
            for axis in range(group_size):
                least, most = infinity, -infinity
                for i in range(LEAF):
                    entry = keys[box * LEAF + i] & 0xFFFFFFFF
                    value = points[entry * group_size + axis]
                    least, most = min(least, value), max(most, value)
                    place = (box * group_size + axis) * LEAF + i
                    columns[place] = value if entry < count else infinity
                place = (run * group_size + axis) * LANES + lane
                low[place], high[place] = least, most
                place = axis * runs + run
                run_low[place] = min(run_low[place], least)
                run_high[place] = max(run_high[place], most)
            for i in range(LEAF):
                numbers[box * LEAF + i] = keys[box * LEAF + i] & 0xFFFFFFFF

    return jit(kernel)
