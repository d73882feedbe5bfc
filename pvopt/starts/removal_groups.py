"""Which weights of a sparse layer may go, by the groups that keep a fixed number."""

from __future__ import annotations

import math

from torch import Tensor

from pvopt.core.layout import GroupLayout
from pvopt.parametrizations.supports import best_supports

__all__ = ["RemovalGroups"]


class RemovalGroups:
    """The groups of a sparse weight, and how many weights stay in each."""

    def __init__(self, layout: GroupLayout, nonzeros: int) -> None:
        self.layout, self.nonzeros = layout, nonzeros

    @property
    def removals(self) -> int:
        """How many weights go from each block row of groups."""
        return self.layout.cols * (self.layout.group_size - self.nonzeros)

    def least_salient(self, weight: Tensor, inverse: Tensor) -> Tensor:
        """Return the mask ``[rows, in]`` of the weights that go if all go at once."""
        saliency = (weight.square() / inverse.diagonal()).view(self.layout.shape)
        masks = best_supports(self.layout.split(saliency), self.nonzeros, 1)[:, 0]
        return ~self.layout.merge(masks).view(weight.shape)

    def next_removals(self, saliency: Tensor, size: int) -> Tensor:
        """Return the columns ``[n, size]`` of least saliency; fewer where groups are full soon.

        Of several groups in a row, each loses at most one.
        """
        if self.layout.cols == 1:
            return saliency.topk(size, dim=1, largest=False).indices
        groups = saliency.view(len(saliency), self.layout.cols, self.layout.in_group)
        least, place = groups.min(2)  # [n, groups]
        full = groups.isfinite().sum(2) <= self.nonzeros
        least = least.masked_fill(full, math.inf)
        size = min(size, int((~full).sum(1).min()))
        group = least.topk(size, dim=1, largest=False).indices  # [n, size]
        return group * self.layout.in_group + place.gather(1, group)
