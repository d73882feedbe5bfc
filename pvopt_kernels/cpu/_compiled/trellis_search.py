"""The Viterbi algorithm on a trellis, for several sequences at once."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .jit import jit
from .parallel import ParallelLoop
from .vectors import load, pick, spread, store, store_bytes

__all__ = ["LANES", "trellis_kernel"]

# Sequences that go through the trellis side by side, one in each lane of a vector: no gather is
# needed, whatever node a cost is read from.
LANES = 16


@jit
def error(table, state, values, point, weights):
    """Return the weighted squared error of a state in each lane, in the step of ``point``."""
    gap = load(point, 0, LANES) - spread(table[state * values], LANES)
    total = gap * gap * load(weights, 0, LANES)
    for v in range(1, values):
        gap = load(point, v * LANES, LANES) - spread(table[state * values + v], LANES)
        total = total + gap * gap * load(weights, v * LANES, LANES)
    return total


@functools.cache
def trellis_kernel(symbol_bits: int, values: int) -> ParallelLoop:
    """Return the loop over blocks of ``LANES`` sequences.

    Its arguments are flat arrays: targets ``[n, steps * values]``, metric (alike, or empty for 1),
    table ``[states, values]``, nodes at the ends ``[n, 2]`` (empty where sequences bite their
    tails), the number of steps, output symbols ``[n, steps]`` int64.
    """
    branches = 1 << symbol_bits

    @jit
    def forward(table, costs, after, point, weights, nodes, back, place, keep):
        """Fill the costs of reaching each node after a step, and by which branch."""
        stride = nodes >> symbol_bits
        for high in range(stride):
            for low in range(branches):
                node = high << symbol_bits | low
                best = load(costs, high * LANES, LANES) + error(table, node, values, point, weights)
                branch = spread(np.int32(0), LANES)
                for b in range(1, branches):
                    cost = load(costs, (b * stride + high) * LANES, LANES) + error(
                        table, b * nodes + node, values, point, weights
                    )
                    if keep:
                        branch = pick(cost, best, spread(np.int32(b), LANES), branch)
                    best = pick(cost, best, cost, best)
                store(after, node * LANES, best)
                if keep:
                    store_bytes(back, place + node * LANES, branch)

    @jit
    def backward(table, costs, before, point, weights, nodes):
        """Fill the costs to go of each node before a step."""
        mask = nodes - 1
        for node in range(nodes):
            state = node << symbol_bits
            best = load(costs, (state & mask) * LANES, LANES) + error(
                table, state, values, point, weights
            )
            for b in range(1, branches):
                state = node << symbol_bits | b
                cost = load(costs, (state & mask) * LANES, LANES) + error(
                    table, state, values, point, weights
                )
                best = pick(cost, best, cost, best)
            store(before, node * LANES, best)

    def kernel(targets, metric, table, ends, steps, symbols, size, parts):
        blocks = (size + LANES - 1) // LANES
        for part in prange(parts):
            real = table.dtype.type
            nodes = len(table) // values >> symbol_bits
            length = steps * values
            points = np.zeros(length * LANES, table.dtype)
            weights = np.ones(length * LANES, table.dtype)
            costs = np.empty((2, nodes * LANES), table.dtype)
            left = np.empty((2, nodes * LANES if len(ends) == 0 else 0), table.dtype)
            back = np.empty(steps * nodes * LANES, np.uint8)
            first = np.zeros(LANES, np.int64)
            last = np.zeros(LANES, np.int64)
            for block in range(blocks * part // parts, blocks * (part + 1) // parts):
                here = min(LANES, size - block * LANES)
                for lane in range(LANES):
                    n = block * LANES + min(lane, here - 1)  # the last one fills the lanes
                    for i in range(length):
                        points[i * LANES + lane] = targets[n * length + i]
                        if len(metric) > 0:
                            weights[i * LANES + lane] = metric[n * length + i]
                    if len(ends) > 0:
                        first[lane], last[lane] = ends[2 * n], ends[2 * n + 1]
                step_size = values * LANES
                if len(ends) == 0:
                    # Begun in the middle, with free ends: where does it pass the sequence's end?
                    costs[0, :] = 0
                    now = 0
                    for step in range(steps // 2, steps):
                        at = step * step_size
                        forward(
                            table, costs[now], costs[1 - now], points[at:], weights[at:], nodes,
                            back, 0, False,
                        )  # fmt: skip
                        now = 1 - now
                    left[0, :] = 0
                    then = 0
                    for step in range(steps // 2 - 1, -1, -1):
                        at = step * step_size
                        backward(
                            table, left[then], left[1 - then], points[at:], weights[at:], nodes
                        )
                        then = 1 - then
                    for lane in range(LANES):
                        best = real(np.inf)
                        first[lane] = 0
                        for node in range(nodes):
                            whole = (
                                costs[now, node * LANES + lane] + left[then, node * LANES + lane]
                            )
                            if whole < best:
                                best = whole
                                first[lane] = node
                        last[lane] = first[lane]
                costs[0, :] = real(np.inf)
                for lane in range(LANES):
                    costs[0, first[lane] * LANES + lane] = 0
                now = 0
                for step in range(steps):
                    at = step * step_size
                    forward(
                        table, costs[now], costs[1 - now], points[at:], weights[at:], nodes,
                        back, step * nodes * LANES, True,
                    )  # fmt: skip
                    now = 1 - now
                for lane in range(here):
                    n = block * LANES + lane
                    node = last[lane]
                    for step in range(steps - 1, -1, -1):
                        branch = np.int64(back[(step * nodes + node) * LANES + lane])
                        state = branch * nodes + node
                        symbols[n * steps + step] = state & (branches - 1)
                        node = state >> symbol_bits

    return ParallelLoop(kernel)
