"""Sums of the entries that share a code."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sum_by_code"]


def sum_by_code(values: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    r"""Add up the rows of ``values`` that have the same code.

    .. math:: S_k = \sum_{g:\ z_g = k} x_g

    Args:
        values: ``[n, g]``, floating.
        codes: ``[n]`` int64 in ``0 .. num_codes - 1``.
        num_codes: number of codes.

    Returns:
        ``[num_codes, g]`` of the values' dtype; summed in float64 on the CPU.

    Example:
        >>> sum_by_code(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 2, 0]), 3)
        tensor([[5.],
                [0.],
                [2.]])
    """
    if values.device.type != "cpu":
        out = torch.zeros(num_codes, values.shape[1], dtype=values.dtype, device=values.device)
        return out.index_add_(0, codes, values)
    # One bincount per column: 1.8 ms for 110592 groups of 8 on two cores, against 3.5 ms of
    # index_add_ and 5.5 ms of embedding's backward. It adds float32 weights in float32, where a
    # million small terms are lost one by one: widen first, for 7 % of the time.
    columns = [
        torch.bincount(codes, weights=c.double(), minlength=num_codes) for c in values.unbind(1)
    ]
    return torch.stack(columns, dim=1).to(values.dtype)
