"""Nearest points of E8P: the errors of all vectors at their best signs, then other signs."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .jit import jit
from .parallel import ParallelLoop
from .scoring import LANES, bound, insert
from .vectors import at_most, load, lowest_bit, pick, spread, store

__all__ = ["LANES", "e8p_kernel"]


@jit
def pair_errors(columns, place, padded, offsets, constant, pull, halves, flip, weighted):
    """Return half the squared errors of ``LANES`` absolute vectors at their best signs."""
    result = load(offsets, place, LANES) + spread(constant, LANES)
    cheapest = spread(offsets.dtype.type(np.inf), LANES)
    for i in range(8):
        size = load(columns, place + i * padded, LANES)
        product = spread(pull[i], LANES) * size
        if weighted:
            result = result + size * (size * spread(halves[i], LANES)) - product
        else:
            result = result - product
        if flip:
            cheapest = pick(product, cheapest, product, cheapest)
    if flip:
        result = result + (cheapest + cheapest)
    return result


@jit
def flip_costs(columns, padded, lane, pull, costs):
    """Fill what another sign costs, place by place; return the cheapest place."""
    cheapest = 0
    for i in range(8):
        costs[i] = 2 * pull[i] * columns[i * padded + lane]
        if costs[i] < costs[cheapest]:
            cheapest = i
    return cheapest


@jit
def other_signs(value, costs, wrong, cheapest, masks, lane, minus, sums, best, lanes, signs, k):
    """Let the signs of a pair of shift and vector compete, but for its best ones.

    A pattern has a bit for each of the places 0 to 6 whose sign is not the target's; place 7
    follows from parity. Sixteen patterns of the low four places are added up at once.
    """
    zero = costs.dtype.type(0)
    low = spread(zero, LANES)
    for i in range(4):
        low = low + spread(costs[i], LANES) * load(masks, i * LANES, LANES)
    last = spread(costs[7], LANES)
    odd = low + last * load(masks, 4 * LANES, LANES)  # place 7 where the low four are odd
    even = low + last * load(masks, 5 * LANES, LANES)
    known = cheapest if wrong else 7
    skipped = 1 << known if known < 7 else 0
    base = value - (costs[cheapest] if wrong else zero)
    for high in range(8):
        total = base
        parity = wrong
        for i in range(3):
            if high >> i & 1:
                total += costs[4 + i]
                parity = not parity
        if total > best[k - 1]:
            continue
        values = spread(total, LANES) + (even if parity else odd)
        bits = at_most(values, spread(best[k - 1], LANES))
        store(sums, 0, values)
        while bits != 0:
            i = lowest_bit(bits)
            bits &= bits - 1
            pattern = high << 4 | i
            if sums[i] < best[k - 1] and pattern != skipped:
                insert(sums[i], lane, minus ^ pattern, best, lanes, signs, k)


@functools.cache
def e8p_kernel(weighted: bool) -> ParallelLoop:
    """Return the loop over groups.

    Its arguments are flat arrays: targets, metric (read if ``weighted``), the two shifts, absolute
    vectors as columns ``[8, K']`` (the even ones, padded to a multiple of ``LANES``, then the
    others, padded), what is added to their scores ``[K']`` (half their squares or, if
    ``weighted``, 0; infinity where padded), their numbers ``[K']``, padded even vectors, masks
    ``[6, LANES]`` (the low four bits of a lane's number, whether they are odd, or even),
    candidates wanted (at most 512), output codes ``[n, k, 2]``.
    """

    def kernel(
        targets, metric, shifts, columns, offsets, numbers, evens, masks, k, codes, size, parts
    ):
        for part in prange(parts):
            real = columns.dtype.type
            infinity = real(np.inf)
            padded = len(offsets)
            pull = np.empty((2, 8), columns.dtype)
            halves = np.empty(8, columns.dtype)
            minus = np.zeros(2, np.int64)
            odd = np.zeros(2, np.bool_)
            costs = np.empty(8, columns.dtype)
            scratch = np.empty(LANES, columns.dtype)
            blocks = np.empty(LANES, np.int32)
            scores = np.empty(2 * padded, columns.dtype)
            errors, best = np.empty(k, columns.dtype), np.empty(k, columns.dtype)
            pairs, lanes = np.empty(k, np.int64), np.empty(k, np.int64)
            nothing, signs = np.empty(k, np.int64), np.empty(k, np.int64)
            for n in range(size * part // parts, size * (part + 1) // parts):
                minima = spread(infinity, LANES)
                block = spread(np.int32(0), LANES)
                for shift in range(2):
                    constant = real(0)
                    count, bits = 0, 0
                    for i in range(8):
                        gap = targets[n * 8 + i] - shifts[shift]
                        if gap < 0:
                            count += 1
                            bits |= 1 << i
                        length = abs(gap)
                        weight = metric[n * 8 + i] if weighted else real(1)
                        pull[shift, i] = length * weight
                        halves[i] = real(0.5) * weight
                        constant += pull[shift, i] * length
                    minus[shift], odd[shift] = bits & 127, count & 1
                    constant *= real(0.5)
                    # The target's own signs suit either the even vectors or the odd ones. The loop
                    # is written twice for constants: with a variable a group takes 0.54 us, not
                    # 0.29.
                    here = pull[shift]
                    for parity in range(2):
                        first, end = (0, evens) if parity == 0 else (evens, padded)
                        if odd[shift] == (parity == 0):
                            for e in range(first, end, LANES):
                                now = pair_errors(
                                    columns, e, padded, offsets, constant, here, halves, True,
                                    weighted,
                                )  # fmt: skip
                                place = shift * padded + e
                                if k > 1:
                                    store(scores, place, now)
                                block = pick(now, minima, spread(np.int32(place), LANES), block)
                                minima = pick(now, minima, now, minima)
                        else:
                            for e in range(first, end, LANES):
                                now = pair_errors(
                                    columns, e, padded, offsets, constant, here, halves, False,
                                    weighted,
                                )  # fmt: skip
                                place = shift * padded + e
                                if k > 1:
                                    store(scores, place, now)
                                block = pick(now, minima, spread(np.int32(place), LANES), block)
                                minima = pick(now, minima, now, minima)
                if k == 1:
                    store(scratch, 0, minima)
                    store(blocks, 0, block)
                    lane = 0
                    for i in range(1, LANES):
                        if scratch[i] < scratch[lane]:
                            lane = i
                    pairs[0] = np.int64(blocks[lane]) + lane
                else:
                    errors[:] = infinity  # what remains where scores are NaN
                    pairs[:] = 0
                    limit = bound(minima, k, infinity) if k <= LANES else infinity
                    for e in range(0, 2 * padded, LANES):
                        bits = at_most(load(scores, e, LANES), spread(limit, LANES))
                        while bits != 0:
                            i = e + lowest_bit(bits)
                            bits &= bits - 1
                            if scores[i] < errors[k - 1]:
                                insert(scores[i], 0, i, errors, nothing, pairs, k)
                # The best signs of the k best pairs are a start; then other signs of these pairs.
                for i in range(k):
                    shift, lane = pairs[i] // padded, pairs[i] % padded
                    sign = minus[shift]
                    if odd[shift] == (lane < evens):
                        cheapest = flip_costs(columns, padded, lane, pull[shift], costs)
                        sign = (sign ^ (1 << cheapest)) & 127
                    best[i], lanes[i], signs[i] = errors[i], pairs[i], sign
                if k > 1:
                    for i in range(k):
                        if not errors[i] < best[k - 1]:
                            break
                        shift, lane = pairs[i] // padded, pairs[i] % padded
                        cheapest = flip_costs(columns, padded, lane, pull[shift], costs)
                        other_signs(
                            errors[i], costs, odd[shift] == (lane < evens), cheapest, masks,
                            pairs[i], minus[shift], scratch, best, lanes, signs, k,
                        )  # fmt: skip
                for i in range(k):
                    shift, lane = lanes[i] // padded, lanes[i] % padded
                    codes[(n * k + i) * 2] = numbers[lane]
                    codes[(n * k + i) * 2 + 1] = signs[i] | shift << 7

    return ParallelLoop(kernel)
