"""Beam search over additive codes, one group after the other."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .parallel import ParallelLoop
from .scoring import LANES, bound, insert, nearest, score
from .vectors import at_most, item, load, lowest_bit, pick, spread, store

__all__ = ["LANES", "beam_kernel"]


@functools.cache
def beam_kernel(group_size: int, num_codebooks: int, weighted: bool) -> ParallelLoop:
    """Return the loop over groups.

    Its arguments are flat arrays: target, metric (read if ``weighted``), groups of a weight,
    codebooks ``[W, M, K, g]``, the same ``[W, M, g, K']`` with entries padded by infinity, entries
    ``K``, padded entries ``K'``, codes, order of the codebooks, beams kept between visits,
    candidates wanted, output ``[n, k, M]``.
    """

    def kernel(
        target, metric, each, books, columns, entries, padded, codes, order, beam, k, out,
        size, parts,
    ):  # fmt: skip
        for part in prange(parts):
            infinity = books.dtype.type(np.inf)
            width = max(beam, k)
            point = np.empty(group_size, books.dtype)
            weights = np.ones(group_size, books.dtype)
            numbers = np.empty(LANES, np.int32)
            scores = np.empty(padded, books.dtype)
            best = np.empty(width, books.dtype)
            parents = np.empty(width, np.int64)
            found = np.empty(width, np.int64)
            rests = np.empty(
                (2, width, group_size), books.dtype
            )  # target minus the sum of all books
            beams = np.empty((2, width, num_codebooks), np.int64)
            for n in range(size * part // parts, size * (part + 1) // parts):
                book = n // each * num_codebooks  # the first one of the weight
                rest = load(target, n * group_size, group_size)
                for m in range(num_codebooks):
                    code = item(codes, n * num_codebooks + m)
                    place = ((book + m) * entries + code) * group_size
                    rest = rest - load(books, place, group_size)
                    beams[0, 0, m] = code
                store(rests, 0, rest)
                if weighted:
                    store(weights, 0, load(metric, n * group_size, group_size))
                now, count = 0, 1
                for visit in range(len(order)):
                    m = order[visit]
                    keep = min(k if visit == len(order) - 1 else width, count * entries)
                    first = (book + m) * group_size * padded
                    for i in range(keep):  # what remains where scores are NaN
                        best[i], parents[i], found[i] = infinity, 0, beams[now, 0, m]
                    for b in range(count):
                        code = (book + m) * entries + beams[now, b, m]
                        place = (now * width + b) * group_size
                        rest = load(rests, place, group_size)
                        rest = rest + load(books, code * group_size, group_size)  # without book m
                        store(rests, place, rest)
                        store(point, 0, rest)
                        if keep == 1:
                            value, entry = nearest(
                                columns, first, padded, point, weights, numbers,
                                group_size, weighted,
                            )  # fmt: skip
                            if value < best[0]:
                                best[0], parents[0], found[0] = value, b, entry
                            continue
                        # The k-th smallest of the lanes' minima is no less than the k-th smallest
                        # score: few entries pass it, and only those need sorting.
                        minima = spread(infinity, LANES)
                        for e in range(0, padded, LANES):
                            values = score(
                                columns, first + e, padded, point, weights, group_size, weighted
                            )
                            store(scores, e, values)
                            minima = pick(values, minima, values, minima)
                        limit = best[keep - 1]
                        if keep <= LANES:
                            limit = min(limit, bound(minima, keep, infinity))
                        for e in range(0, padded, LANES):
                            bits = at_most(load(scores, e, LANES), spread(limit, LANES))
                            while bits != 0:
                                i = e + lowest_bit(bits)
                                bits &= bits - 1
                                if scores[i] < best[keep - 1]:
                                    insert(scores[i], b, i, best, parents, found, keep)
                    for i in range(keep):
                        parent = parents[i]
                        for j in range(num_codebooks):
                            beams[1 - now, i, j] = beams[now, parent, j]
                        beams[1 - now, i, m] = found[i]
                        code = (book + m) * entries + found[i]
                        rest = load(rests, (now * width + parent) * group_size, group_size)
                        rest = rest - load(books, code * group_size, group_size)
                        store(rests, ((1 - now) * width + i) * group_size, rest)
                    now, count = 1 - now, keep
                for i in range(count):
                    for j in range(num_codebooks):
                        out[(n * count + i) * num_codebooks + j] = beams[now, i, j]

    return ParallelLoop(kernel)
