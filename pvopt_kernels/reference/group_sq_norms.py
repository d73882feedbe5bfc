"""Squared norms of the groups of a difference."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["group_sq_norms"]


def group_sq_norms(target: Tensor, weight: Tensor, out_group: int, in_group: int) -> Tensor:
    """Return ``[groups]`` squared norms; see :func:`pvopt_kernels.group_sq_norms`."""
    exact = torch.promote_types(torch.promote_types(target.dtype, weight.dtype), torch.float32)
    rows, columns = weight.shape
    blocks = (rows // out_group, out_group, columns // in_group, in_group)
    difference = (target.to(exact) - weight.to(exact)).view(blocks)
    return difference.square_().sum((1, 3)).flatten()
