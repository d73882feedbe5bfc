"""Dense weights from codes: look the entries up, add, scale."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["decode", "merge", "split", "sum_entries", "unsigned"]


def unsigned(codes: Tensor) -> Tensor:
    """Return codes as non-negative int32: narrow signed dtypes are read as unsigned."""
    if codes.dtype in (torch.int8, torch.int16):
        return codes.int() & ((1 << 8 * codes.dtype.itemsize) - 1)
    return codes.int()


def sum_entries(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Return the unscaled sums ``[groups, g]`` in at least float32, codebook by codebook."""
    books = codebooks.to(torch.promote_types(codebooks.dtype, torch.float32))
    flat = codes.reshape(-1, codes.shape[-1])  # [groups, M]
    total = books[0].index_select(0, unsigned(flat[:, 0]))
    for book, code in zip(books[1:], flat.unbind(1)[1:], strict=True):
        total += book.index_select(0, unsigned(code))
    return total


def merge(groups: Tensor, rows: int, cols: int, out_group: int) -> Tensor:
    """Put groups ``[rows * cols, g]`` in their places in a dense weight."""
    in_group = groups.shape[1] // out_group
    if out_group == 1:
        return groups.view(rows, cols * in_group)
    blocks = groups.view(rows, cols, out_group, in_group).transpose(1, 2)
    return blocks.reshape(rows * out_group, cols * in_group)


def split(weight: Tensor, rows: int, cols: int, out_group: int) -> Tensor:
    """Cut a dense weight into groups ``[rows * cols, g]``."""
    in_group = weight.shape[1] // max(1, cols)
    blocks = weight.reshape(rows, out_group, cols, in_group).transpose(1, 2)
    return blocks.reshape(rows * cols, out_group * in_group)


def decode(codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int) -> Tensor:
    """Return the dense weight; see :func:`pvopt_kernels.decode`."""
    rows, cols = codes.shape[:2]
    total = sum_entries(codes, codebooks)
    by_scale = (scales.numel(), -1 if scales.numel() else 0)
    total.view(by_scale).mul_(scales.reshape(-1, 1).to(total.dtype))
    return merge(total.to(codebooks.dtype), rows, cols, out_group)
