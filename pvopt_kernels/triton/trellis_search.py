# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false
"""Nearest sequences of a trellis: a program goes through it with one sequence."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvopt_kernels.reference.trellis_search import trellis_search as reference

from ._compile_spec import CompileSpec
from ._launch import launch

__all__ = ["compile_specs", "trellis_search"]

# Nodes that a program visits at once, two for each of its threads, and bytes of memory for the
# branches and costs of the sequences that are under way together.
_NODES = 512
_WARPS = 8
_MEMORY = 1 << 30


@triton.jit
def squared_errors(table, state, target, metric, at, WEIGHTED: tl.constexpr, VALUES: tl.constexpr):
    """Return the errors of some states in the step whose weights begin at a place."""
    total = tl.zeros_like(state).to(tl.float32)
    for v in tl.static_range(VALUES):
        gap = tl.load(target + at + v).to(tl.float32)
        gap -= tl.load(table + state * VALUES + v).to(tl.float32)
        square = gap * gap
        if WEIGHTED:
            square *= tl.load(metric + at + v).to(tl.float32)
        total += square
    return total


@triton.jit
def forward_step(
    table,
    target,
    metric,
    at,
    reached,
    after,
    branches,
    SYMBOL_BITS: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHTED: tl.constexpr,
    VALUES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Fill the costs of reaching each node after a step, and by which branch."""
    for first in range(0, NODES, BLOCK):
        node = first + tl.arange(0, BLOCK)
        best = tl.full([BLOCK], float("inf"), dtype=tl.float32)
        branch = tl.zeros([BLOCK], dtype=tl.int32)
        for b in range(1 << SYMBOL_BITS):
            state = b * NODES + node
            cost = tl.load(reached + (state >> SYMBOL_BITS))
            cost += squared_errors(table, state, target, metric, at, WEIGHTED, VALUES)
            branch = tl.where(cost < best, b, branch)
            best = tl.minimum(cost, best)
        tl.store(after + node, best)
        if KEEP:
            tl.store(branches + node, branch.to(tl.uint8))
    tl.debug_barrier()


@triton.jit
def trellis_search_kernel(
    target,
    metric,
    table,
    ends,
    costs,
    branches,
    symbols,
    steps,
    SYMBOL_BITS: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHTED: tl.constexpr,
    VALUES: tl.constexpr,
    CIRCULAR: tl.constexpr,
):
    """Write the symbols of one sequence.

    ``costs`` has room for four times, ``branches`` for ``steps`` times the nodes of each sequence.
    """
    n = tl.program_id(0).to(tl.int64)
    origin = n * steps * VALUES
    reached = costs + n * 4 * NODES
    after = reached + NODES
    branches += n * steps * NODES
    start = 0
    end = 0
    if CIRCULAR:
        # Begun in the middle, with free ends: which node does it pass at the sequence's end?
        left = after + NODES
        before = left + NODES
        for first in range(0, NODES, BLOCK):
            tl.store(reached + first + tl.arange(0, BLOCK), tl.zeros([BLOCK], dtype=tl.float32))
            tl.store(left + first + tl.arange(0, BLOCK), tl.zeros([BLOCK], dtype=tl.float32))
        tl.debug_barrier()
        for step in range(steps // 2, steps):
            forward_step(
                table, target, metric, origin + step * VALUES, reached, after, branches,
                SYMBOL_BITS, NODES, BLOCK, WEIGHTED, VALUES, False,
            )  # fmt: skip
            reached, after = after, reached
        for back in range(steps // 2):
            at = origin + (steps // 2 - 1 - back) * VALUES
            for first in range(0, NODES, BLOCK):
                node = first + tl.arange(0, BLOCK)
                best = tl.full([BLOCK], float("inf"), dtype=tl.float32)
                for b in range(1 << SYMBOL_BITS):
                    state = (node << SYMBOL_BITS) | b
                    cost = tl.load(left + (state & (NODES - 1)))
                    cost += squared_errors(table, state, target, metric, at, WEIGHTED, VALUES)
                    best = tl.minimum(cost, best)
                tl.store(before + node, best)
            tl.debug_barrier()
            left, before = before, left
        least = float("inf")
        for first in range(0, NODES, BLOCK):
            node = first + tl.arange(0, BLOCK)
            whole = tl.load(reached + node) + tl.load(left + node)
            found, index = tl.min(whole, 0, return_indices=True)
            start = tl.where(found < least, first + index, start)
            least = tl.minimum(found, least)
        end = start
        tl.debug_barrier()
    else:
        start = tl.load(ends + 2 * n).to(tl.int32)
        end = tl.load(ends + 2 * n + 1).to(tl.int32)
    for first in range(0, NODES, BLOCK):
        node = first + tl.arange(0, BLOCK)
        tl.store(reached + node, tl.where(node == start, 0.0, float("inf")))
    tl.debug_barrier()
    for step in range(steps):
        forward_step(
            table, target, metric, origin + step * VALUES, reached, after,
            branches + step * NODES, SYMBOL_BITS, NODES, BLOCK, WEIGHTED, VALUES, True,
        )  # fmt: skip
        reached, after = after, reached
    node = end
    for back in range(steps):
        step = steps - 1 - back
        state = tl.load(branches + step * NODES + node).to(tl.int32) * NODES + node
        tl.store(symbols + n * steps + step, (state & ((1 << SYMBOL_BITS) - 1)).to(tl.int64))
        node = state >> SYMBOL_BITS


def trellis_search(
    target: Tensor,
    table: Tensor,
    k: int,
    *,
    symbol_bits: int,
    metric: Tensor | None,
    ends: Tensor | None,
) -> Tensor:
    """Return symbols ``[n, k, steps]``; see :func:`pvopt_kernels.trellis_search`.

    One sequence comes from the kernel, several from the reference: stochastic rounding asks for
    them.
    """
    if k > 1:
        return reference(target, table, k, symbol_bits=symbol_bits, metric=metric, ends=ends)
    n, values = len(target), table.shape[1]
    steps, nodes = target.shape[1] // values, len(table) >> symbol_bits
    target, table = target.contiguous(), table.contiguous()
    metric = None if metric is None else metric.contiguous()
    ends = None if ends is None else ends.contiguous()
    symbols = torch.empty(n, 1, steps, dtype=torch.int64, device=target.device)
    together = max(1, min(n, _MEMORY // (nodes * (steps + 16))))
    costs = torch.empty(together, 4, nodes, dtype=torch.float32, device=target.device)
    branches = torch.empty(together, steps, nodes, dtype=torch.uint8, device=target.device)
    for first in range(0, n, together):
        place = slice(first, first + together)
        launch(
            trellis_search_kernel,
            (len(target[place]),),
            target.device,
            target[place],
            target[place] if metric is None else metric[place],  # not read if None
            table,
            symbols if ends is None else ends[place],  # not read if None
            costs,
            branches,
            symbols[place],
            steps,
            SYMBOL_BITS=symbol_bits,
            NODES=nodes,
            BLOCK=min(nodes, _NODES),
            WEIGHTED=metric is not None,
            VALUES=values,
            CIRCULAR=ends is None,
            num_warps=_WARPS,
        )
    return symbols


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    specs = []
    for dtype, bits, state_bits, values, weighted, circular in (
        ("fp32", 2, 16, 1, True, True),
        ("fp32", 2, 12, 1, True, True),
        ("fp32", 3, 12, 1, False, False),
        ("bf16", 4, 12, 2, True, True),
    ):
        nodes = 1 << (state_bits - bits)
        signature = {"target": f"*{dtype}", "metric": f"*{dtype}", "table": f"*{dtype}"}
        signature |= {"ends": "*i64", "costs": "*fp32", "branches": "*u8", "symbols": "*i64"}
        signature |= {"steps": "i32"}
        constants = {
            "SYMBOL_BITS": bits,
            "NODES": nodes,
            "BLOCK": min(nodes, _NODES),
            "WEIGHTED": weighted,
            "VALUES": values,
            "CIRCULAR": circular,
        }
        label = f"{dtype} B={bits} L={state_bits} V={values}"
        label += f"{' metric' if weighted else ''}{' circular' if circular else ''}"
        specs.append(
            CompileSpec(trellis_search_kernel, signature, constants, label, num_warps=_WARPS)
        )
    return specs
