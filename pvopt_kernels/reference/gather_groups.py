"""Groups of a list of dense weights by their numbers, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["blocks_of", "gather_groups"]


def blocks_of(weight: Tensor, out_group: int, in_group: int) -> Tensor:
    """View a dense weight of any layout as ``[rows, cols, out_group, in_group]``."""
    if 0 in weight.shape:  # what has no block has no unfolding
        rows, columns = weight.shape
        return weight.new_empty(rows // out_group, columns // in_group, out_group, in_group)
    return weight.unfold(0, out_group, out_group).unfold(1, in_group, in_group)


def gather_groups(
    targets: Sequence[Tensor], groups: Tensor, out_group: int, in_group: int
) -> Tensor:
    """Return ``[W, n, g]``; see :func:`pvopt_kernels.gather_groups`."""
    exact = torch.float32
    for target in targets:
        exact = torch.promote_types(exact, target.dtype)
    shape = (*groups.shape, out_group * in_group)
    found = torch.empty(shape, dtype=exact, device=groups.device)
    for part, target, numbers in zip(found, targets, groups, strict=True):
        blocks = blocks_of(target, out_group, in_group)
        cols = max(1, blocks.shape[1])
        part.copy_(blocks[numbers // cols, numbers % cols].flatten(1))
    return found
