"""Nearest entries of one codebook: all of them, or only the boxes that may hold a nearer one."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .boxes import LEAF
from .jit import jit
from .parallel import ParallelLoop
from .scoring import LANES, bound, insert, nearest, score
from .vectors import at_most, load, lowest_bit, pick, spread, store

__all__ = ["LANES", "boxed_kernel", "plain_kernel"]


@functools.cache
def plain_kernel(group_size: int, weighted: bool) -> ParallelLoop:
    """Return the loop over points that looks at every entry.

    Its arguments are flat arrays: points, metric (read if ``weighted``), points that share a
    codebook, entries of the codebooks as columns ``[W, g, K']`` padded by infinity, padded entries
    ``K'``, candidates wanted, output codes and errors ``[n, k]``.
    """

    def kernel(points, metric, each, columns, padded, k, codes, errors, size, parts):
        for part in prange(parts):
            infinity = columns.dtype.type(np.inf)
            point = np.empty(group_size, columns.dtype)
            weights = np.ones(group_size, columns.dtype)
            numbers = np.empty(LANES, np.int32)
            scores = np.empty(padded, columns.dtype)
            parents = np.empty(k, np.int64)
            for n in range(size * part // parts, size * (part + 1) // parts):
                book = n // each * group_size * padded
                store(point, 0, load(points, n * group_size, group_size))
                if weighted:
                    store(weights, 0, load(metric, n * group_size, group_size))
                if k == 1:
                    errors[n], codes[n] = nearest(
                        columns, book, padded, point, weights, numbers, group_size, weighted
                    )
                    continue
                best, found = errors[n * k : (n + 1) * k], codes[n * k : (n + 1) * k]
                best[:] = infinity
                found[:] = 0
                minima = spread(infinity, LANES)
                for e in range(0, padded, LANES):
                    values = score(columns, book + e, padded, point, weights, group_size, weighted)
                    store(scores, e, values)
                    minima = pick(values, minima, values, minima)
                limit = bound(minima, k, infinity) if k <= LANES else infinity
                for e in range(0, padded, LANES):
                    bits = at_most(load(scores, e, LANES), spread(limit, LANES))
                    while bits != 0:
                        i = e + lowest_bit(bits)
                        bits &= bits - 1
                        if scores[i] < best[k - 1]:
                            insert(scores[i], 0, i, best, parents, found, k)

    return ParallelLoop(kernel)


@jit
def box_bounds(low, high, place, boxes, point, weights, group_size, weighted):
    """Return the squared distances of a point to ``LANES`` boxes, as a vector.

    The operations are those of :func:`.scoring.score`, whose rounding is monotone; the factor
    covers a different choice of fused operations.
    """
    zero = spread(low.dtype.type(0), LANES)
    result = zero
    for i in range(group_size):
        entry = spread(point[i], LANES)
        below = load(low, place + i * boxes, LANES) - entry
        above = entry - load(high, place + i * boxes, LANES)
        gap = pick(below, above, above, below)
        gap = pick(gap, zero, zero, gap)
        result = result + (gap * gap * spread(weights[i], LANES) if weighted else gap * gap)
    return result * spread(low.dtype.type(0.999999), LANES)


@jit
def search_leaf(
    leaf, columns, numbers, point, weights, scores, best, found, k, group_size, weighted
):
    """Let the entries of a box compete; of equal errors the lower number wins."""
    for e in range(0, LEAF, LANES):
        place = leaf * LEAF * group_size + e
        values = score(columns, place, LEAF, point, weights, group_size, weighted)
        bits = at_most(values, spread(best[k - 1], LANES))
        store(scores, 0, values)
        while bits != 0:
            i = lowest_bit(bits)
            bits &= bits - 1
            value, number = scores[i], numbers[leaf * LEAF + e + i]
            if value < best[k - 1] or (value == best[k - 1] and number < found[k - 1]):
                j = k - 1
                while j > 0 and (
                    best[j - 1] > value or (best[j - 1] == value and found[j - 1] > number)
                ):
                    best[j], found[j] = best[j - 1], found[j - 1]
                    j -= 1
                best[j], found[j] = value, number


@functools.cache
def boxed_kernel(group_size: int, weighted: bool) -> ParallelLoop:
    """Return the loop over points that skips boxes too far away to matter.

    Its arguments are flat arrays: points, metric (read if ``weighted``), entries box by box
    ``[boxes, g, LEAF]``, their numbers ``[boxes, LEAF]``, lower and upper corners of the boxes
    ``[boxes / LANES, g, LANES]``, corners of runs of ``LANES`` boxes ``[g, runs']`` padded to a
    multiple of ``LANES``, number of runs, candidates wanted, output codes and errors
    ``[n, k]``.
    """

    def kernel(
        points, metric, columns, numbers, low, high, run_low, run_high, runs, k, codes, errors,
        size, parts,
    ):  # fmt: skip
        for part in prange(parts):
            infinity = columns.dtype.type(np.inf)
            point = np.empty(group_size, columns.dtype)
            weights = np.ones(group_size, columns.dtype)
            scores = np.empty(LANES, columns.dtype)
            padded = len(run_low) // group_size
            run_bounds = np.empty(padded, columns.dtype)
            bounds = np.empty(LANES, columns.dtype)
            for n in range(size * part // parts, size * (part + 1) // parts):
                store(point, 0, load(points, n * group_size, group_size))
                if weighted:
                    store(weights, 0, load(metric, n * group_size, group_size))
                best, found = errors[n * k : (n + 1) * k], codes[n * k : (n + 1) * k]
                best[:] = infinity
                found[:] = 0
                for r in range(0, padded, LANES):
                    values = box_bounds(
                        run_low, run_high, r, padded, point, weights, group_size, weighted
                    )
                    store(run_bounds, r, values)
                # A good first guess makes the bounds work: the nearest box of the nearest run.
                first = 0
                for r in range(1, runs):
                    if run_bounds[r] < run_bounds[first]:
                        first = r
                done = np.int64(-1)
                for turn in range(-1, runs):
                    run = first if turn < 0 else turn
                    if not run_bounds[run] <= best[k - 1]:
                        continue
                    place = run * group_size * LANES
                    values = box_bounds(
                        low, high, place, LANES, point, weights, group_size, weighted
                    )
                    store(bounds, 0, values)
                    if turn < 0:
                        nearest_box = 0
                        for i in range(1, LANES):
                            if bounds[i] < bounds[nearest_box]:
                                nearest_box = i
                        done = run * LANES + nearest_box
                        search_leaf(
                            done, columns, numbers, point, weights, scores, best, found, k,
                            group_size, weighted,
                        )  # fmt: skip
                        continue
                    bits = at_most(values, spread(best[k - 1], LANES))
                    while bits != 0:
                        i = lowest_bit(bits)
                        bits &= bits - 1
                        box = run * LANES + i
                        if bounds[i] <= best[k - 1] and box != done:
                            search_leaf(
                                box, columns, numbers, point, weights, scores, best, found, k,
                                group_size, weighted,
                            )  # fmt: skip

    return ParallelLoop(kernel)
