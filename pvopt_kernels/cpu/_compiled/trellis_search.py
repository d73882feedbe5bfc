"""The Viterbi algorithm on a trellis, one sequence after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from .jit import jit
from .parallel import ParallelLoop
from .vectors import load, pick, repeated, spread, store, store_bytes

__all__ = ["LANES", "trellis_kernel"]

# Nodes that are reached side by side. A branch comes to neighbours from nodes in order, each the
# predecessor of a run of them: no gather is needed, and costs of all nodes stay in the first cache.
LANES = 16


def _step(symbol_bits: int, values: int, lanes: int, keep: bool) -> Callable[..., Any]:
    """Return the function that fills the costs of reaching each node after a step.

    The error of a state is computed as ``(roots * table - goals)**2`` with ``roots`` of the metric
    and ``goals = roots * target``. With ``keep`` it notes the branch by which a node is reached.
    """
    branches = 1 << symbol_bits
    run = min(lanes, branches)  # neighbours that a branch reaches from the same node
    sources = lanes // run

    @jit
    def error(table, node, goals, roots, place, root, goal, states):
        gap = root * load(table, node, lanes) - goal
        total = gap * gap
        for v in range(1, values):
            more = spread(roots[place + v], lanes) * load(table, v * states + node, lanes)
            gap = more - spread(goals[place + v], lanes)
            total = gap * gap + total
        return total

    @jit
    def reach(table, costs, after, goals, roots, place, nodes, back, at):
        states = nodes << symbol_bits
        stride = nodes >> symbol_bits
        root, goal = spread(roots[place], lanes), spread(goals[place], lanes)
        for node in range(0, nodes, lanes):
            before = node >> symbol_bits
            best = repeated(costs, before, sources, run) + error(
                table, node, goals, roots, place, root, goal, states
            )
            branch = spread(np.int32(0), lanes)
            for b in range(1, branches):
                cost = repeated(costs, b * stride + before, sources, run) + error(
                    table, b * nodes + node, goals, roots, place, root, goal, states
                )
                if keep:
                    branch = pick(cost, best, spread(np.int32(b), lanes), branch)
                best = pick(cost, best, cost, best)
            store(after, node, best)
            if keep:
                store_bytes(back, at + node, branch)

    return reach


@functools.cache
def trellis_kernel(symbol_bits: int, values: int, lanes: int) -> ParallelLoop:
    """Return the loop over sequences, for trellises of at least ``lanes`` nodes.

    Its arguments are flat arrays: targets ``[n, steps * values]``, metric (alike, or empty for 1),
    table ``[values, states]``, nodes at the ends ``[n, 2]`` (empty where sequences bite their
    tails), the numbers of nodes and steps, output symbols ``[n, steps]`` int64.
    """
    reach = _step(symbol_bits, values, lanes, False)
    reach_and_note = _step(symbol_bits, values, lanes, True)

    def kernel(targets, metric, table, ends, nodes, steps, symbols, size, parts):
        for part in prange(parts):
            real = table.dtype.type
            length = steps * values
            roots = np.ones(length, table.dtype)
            goals = np.empty(length, table.dtype)
            costs = np.empty((2, nodes), table.dtype)
            back = np.empty(steps * nodes, np.uint8)
            for n in range(size * part // parts, size * (part + 1) // parts):
                for i in range(length):
                    if len(metric) > 0:
                        roots[i] = np.sqrt(metric[n * length + i])
                    goals[i] = roots[i] * targets[n * length + i]
                now = 0
                if len(ends) > 0:
                    first, last = ends[2 * n], ends[2 * n + 1]
                else:
                    # Begun in the middle, with free ends: where does it pass the sequence's end?
                    costs[0, :] = 0
                    for step in range(steps // 2, steps):
                        reach(
                            table, costs[now], costs[1 - now], goals, roots, step * values, nodes,
                            back, 0,
                        )  # fmt: skip
                        now = 1 - now
                    for step in range(steps // 2):
                        reach_and_note(
                            table, costs[now], costs[1 - now], goals, roots, step * values, nodes,
                            back, step * nodes,
                        )  # fmt: skip
                        now = 1 - now
                    first = np.int64(np.argmin(costs[now]))
                    for step in range(steps // 2 - 1, -1, -1):
                        state = np.int64(back[step * nodes + first]) * nodes + first
                        first = state >> symbol_bits
                    last = first
                now = 0
                costs[0, :] = real(np.inf)
                costs[0, first] = 0
                for step in range(steps):
                    reach_and_note(
                        table, costs[now], costs[1 - now], goals, roots, step * values, nodes,
                        back, step * nodes,
                    )  # fmt: skip
                    now = 1 - now
                node = last
                for step in range(steps - 1, -1, -1):
                    state = np.int64(back[step * nodes + node]) * nodes + node
                    symbols[n * steps + step] = state & ((1 << symbol_bits) - 1)
                    node = state >> symbol_bits

    return ParallelLoop(kernel)
