"""What a search for codes finds, and how far off it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pvopt.metrics.block import BlockMetric

__all__ = ["Candidates", "squared_norms"]


@dataclass(frozen=True)
class Candidates:
    """The best codes found for each of ``n`` groups, best first.

    Args:
        codes: ``[n, k, codes_per_group]``, int64.
        errors: ``[n, k]``, squared distance (in the metric, if any) of the decoded candidate to
            the group's target; ``inf`` marks a slot for which no further code exists.

    Example:
        >>> import torch
        >>> from pvopt import SharedValues
        >>> rep = SharedValues(3).fit(torch.tensor([[0.0, 1.0, 4.0]]))
        >>> target, groups = torch.tensor([[2.25]]), torch.tensor([0])
        >>> found = rep.parametrization.candidates(target, rep, groups, k=2)
        >>> found.codes.flatten().tolist(), found.errors.flatten().tolist()
        ([1, 2], [1.5625, 3.0625])
    """

    codes: Tensor
    errors: Tensor


def squared_norms(vectors: Tensor, metric: Tensor | BlockMetric | None) -> Tensor:
    """Return the squared norm of each vector in a metric.

    Args:
        vectors: ``[n, group_size]``; overwritten.
        metric: ``[n, group_size]``, one matrix for all, or None for 1.

    Returns:
        ``[n]``.

    Example:
        >>> import torch
        >>> squared_norms(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]]))
        tensor([6.])
    """
    if isinstance(metric, BlockMetric):
        return metric.squared_norms(vectors)
    squares = vectors.square_()
    return (squares if metric is None else squares.mul_(metric)).sum(-1)
