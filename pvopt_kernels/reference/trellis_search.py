"""Nearest sequences of a trellis: costs to go by the Viterbi recursion, then the best ways."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["trellis_search"]

# Costs to go of a chunk, of all its steps, 64 MiB in single precision.
_CHUNK_ELEMENTS = 1 << 24


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

    ``k`` is at most the number of sequences between two ends.
    """
    exact = torch.promote_types(target.dtype, torch.float32)
    trellis = _Trellis(table.to(exact), symbol_bits)
    targets = target.to(exact).unflatten(1, (-1, table.shape[1]))  # [n, steps, V]
    metrics = None if metric is None else metric.to(exact).unflatten(1, (-1, table.shape[1]))
    n, steps = targets.shape[:2]
    chunk = max(1, _CHUNK_ELEMENTS // ((steps + 1) * trellis.nodes))
    parts = []
    for first in range(0, n, chunk):
        place = slice(first, first + chunk)
        errors = _Errors(trellis.table, targets[place], None if metrics is None else metrics[place])
        if ends is None:
            node = trellis.middle(errors, steps)
            start, end = node, node
        else:
            start, end = ends[place].long().unbind(1)
        parts.append(trellis.between(errors, steps, start, end, k))
    if not parts:
        return torch.empty(0, k, steps, dtype=torch.int64, device=target.device)
    return torch.cat(parts)


class _Errors:
    """The weighted squared errors of all states in one step."""

    def __init__(self, table: Tensor, targets: Tensor, metrics: Tensor | None) -> None:
        self.table, self.targets, self.metrics = table, targets, metrics

    def __call__(self, step: int) -> Tensor:
        """Return ``[n, states]``."""
        squares = (self.targets[:, step, None] - self.table).square_()  # [n, states, V]
        if self.metrics is not None:
            squares.mul_(self.metrics[:, step, None])
        return squares.sum(2)


class _Trellis:
    """Transitions between nodes, the last ``L - B`` bits of a state.

    State ``s`` leads from node ``s >> B`` to node ``s % nodes``.
    """

    def __init__(self, table: Tensor, symbol_bits: int) -> None:
        self.table, self.branches = table, 1 << symbol_bits
        self.symbol_bits = symbol_bits
        self.nodes = len(table) >> symbol_bits

    def forward(self, costs: Tensor, errors: Tensor) -> Tensor:
        """Return the costs of reaching each node ``[n, nodes]`` after one more step."""
        reached = costs.repeat_interleave(self.branches, 1).add_(errors)
        return reached.view(len(costs), self.branches, self.nodes).amin(1)

    def backward(self, costs: Tensor, errors: Tensor) -> Tensor:
        """Return the costs to go of each node ``[n, nodes]`` before a step."""
        left = costs.repeat(1, self.branches).add_(errors)
        return left.view(len(costs), self.nodes, self.branches).amin(2)

    def middle(self, errors: _Errors, steps: int) -> Tensor:
        """Return the node before the first step, ``[n]``, of the sequence begun in the middle."""
        n = len(errors.targets)
        reached = self.table.new_zeros(n, self.nodes)
        for step in range(steps // 2, steps):
            reached = self.forward(reached, errors(step))
        left = self.table.new_zeros(n, self.nodes)
        for step in reversed(range(steps // 2)):
            left = self.backward(left, errors(step))
        return (reached + left).argmin(1)

    def between(self, errors: _Errors, steps: int, start: Tensor, end: Tensor, k: int) -> Tensor:
        """Return the ``k`` best ways from one node to another, ``[n, k, steps]`` symbols.

        With exact costs to go, the beginnings of the ``k`` best ways are among the ``k`` best
        beginnings after every step.
        """
        n = len(start)
        left = self.table.new_full((steps + 1, n, self.nodes), torch.inf)
        left[steps].scatter_(1, end[:, None], 0.0)
        for step in reversed(range(steps)):
            left[step] = self.backward(left[step + 1], errors(step))
        nodes, costs = start[:, None], self.table.new_zeros(n, 1)
        symbols = torch.empty(n, 1, 0, dtype=torch.int64, device=start.device)
        fresh = torch.arange(self.branches, device=start.device)
        for step in range(steps):
            states = (nodes[..., None] * self.branches + fresh).flatten(1)  # [n, ways * branches]
            spent = costs.repeat_interleave(self.branches, 1) + errors(step).gather(1, states)
            whole = spent + left[step + 1].gather(1, states % self.nodes)
            best = whole.sort(dim=1, stable=True).indices[:, :k]
            way = best.div(self.branches, rounding_mode="floor")
            chosen = states.gather(1, best)
            symbols = torch.cat(
                [
                    symbols.gather(1, way[..., None].expand(-1, -1, step)),
                    (chosen % self.branches)[..., None],
                ],
                dim=2,
            )
            nodes, costs = chosen % self.nodes, spent.gather(1, best)
        return symbols
