"""Groups of dense weights that are tensors of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout

__all__ = ["gather_groups"]


def gather_groups(weights: Sequence[Tensor], groups: Tensor, layout: GroupLayout) -> Tensor:
    """Return some groups of each of several weights.

    Args:
        weights: ``[*shape]`` each.
        groups: ``[weights, n]`` group numbers.
        layout: of every weight.

    Returns:
        ``[weights, n, group_size]``.
    """
    found = [
        layout.split(weight).index_select(0, own)
        for weight, own in zip(weights, groups, strict=True)
    ]
    return torch.stack(found)
