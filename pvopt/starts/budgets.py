"""How many weights go from each row where all rows share a budget."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shared_removals"]


def shared_removals(errors: Tensor, unit: int, total: int) -> Tensor:
    r"""Return how many weights go from each row, so that the errors of all are least together.

    .. math:: \min_n \sum_r e_r(n_r) \quad\text{where}\quad \sum_r n_r = \text{total}

    for errors that rise ever faster: the cheapest steps of all rows are taken, as greedy removal
    would take them one by one. A step that is cheaper than the one before it counts as much.

    Args:
        errors: ``[rows, steps + 1]``, of each row after so many steps.
        unit: weights that a step removes.
        total: weights to remove; at most ``rows * steps * unit``.

    Returns:
        ``[rows]`` int64, multiples of the unit but for one row.

    Example:
        >>> import torch
        >>> from pvopt.starts.budgets import shared_removals
        >>> errors = torch.tensor([[0.0, 1.0, 3.0], [0.0, 5.0, 10.0]])
        >>> shared_removals(errors, unit=4, total=10)
        tensor([8, 2])
    """
    costs = errors.diff(dim=1).cummax(1).values
    # Step by step, so that among equals the earlier step of a row comes first.
    order = costs.T.flatten().argsort(stable=True) % len(costs)
    whole, rest = divmod(total, unit)
    counts = torch.bincount(order[:whole], minlength=len(costs)) * unit
    if rest:
        counts[order[whole]] += rest
    return counts
