"""The best supports of a fixed size: which entries of a group to keep."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["best_supports"]


def best_supports(gains: Tensor, count: int, k: int) -> Tensor:
    r"""Return the ``k`` subsets of ``count`` entries with the largest sums of gains.

    .. math:: S_1, \dots, S_k = \mathrm{arg\,top}_k \Big\{ \sum_{i \in S} g_i :
        |S| = \text{count} \Big\}

    Exact for any ``k``. In the order of the gains, the best subset is the first ``count`` places,
    and moving its ``j``-th weakest member :math:`\lambda_j` places on, :math:`\lambda_1 \ge
    \lambda_2 \ge \dots`, gives every other. A diagram :math:`\lambda` is no better than any
    that it contains, of which there are at least :math:`\sum_j \lambda_j`: those with
    :math:`\sum_j \lambda_j < k` are enough.

    Args:
        gains: ``[n, m]`` what keeping each entry is worth.
        count: how many entries to keep, ``1 .. m``.
        k: how many subsets.

    Returns:
        ``[n, j, m]`` bool masks, best first; ``j < k`` only if no more subsets exist.

    Example:
        >>> import torch
        >>> from pvopt.parametrizations.supports import best_supports
        >>> best_supports(torch.tensor([[3.0, 1.0, 2.5]]), count=2, k=2).int().tolist()
        [[[1, 0, 1], [1, 1, 0]]]
    """
    n, m = gains.shape
    if k == 1:  # without an order, 0.08 s in place of 0.32 s for 288 of each of 1536 rows of 576
        index = gains.topk(count, dim=1, sorted=False).indices[:, None]
        return torch.zeros(n, 1, m, dtype=torch.bool, device=gains.device).scatter_(2, index, True)
    order = gains.argsort(dim=1, descending=True, stable=True)  # [n, m]
    diagrams = list(_diagrams(k - 1, m - count, count))
    places = torch.arange(count - 1, -1, -1).repeat(len(diagrams), 1)  # the weakest member first
    for row, diagram in zip(places, diagrams, strict=True):
        row[: len(diagram)] += torch.tensor(diagram, dtype=torch.int64)
    places = places.to(gains.device)
    ranked = gains.gather(1, order).double()
    total = torch.stack([ranked[:, row].sum(1) for row in places], dim=1)
    best = total.argsort(dim=1, descending=True, stable=True)[:, :k]  # [n, j]
    kept = places[best]  # [n, j, count]
    index = order[:, None].expand(-1, kept.shape[1], -1).gather(2, kept)
    return torch.zeros(n, kept.shape[1], m, dtype=torch.bool, device=gains.device).scatter_(
        2, index, True
    )


def _diagrams(area: int, width: int, height: int) -> Iterator[tuple[int, ...]]:
    """Yield the non-increasing positive sequences in a box with sum at most ``area``."""
    yield ()
    if height == 0:
        return
    for first in range(1, min(area, width) + 1):
        for rest in _diagrams(area - first, first, height - 1):
            yield (first, *rest)
