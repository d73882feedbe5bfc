"""Gradients of the codebooks and scales of a stack of weights on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.reference.stacked_codebook_grad import stacked_codebook_grad as in_torch

from ._arrays import MAX_GROUP, compiled, scratch
from ._lists import Listed, listed
from .decode_into import stack_arrays
from .sum_by_code import slabs

__all__ = ["stacked_codebook_grad"]

# Tables of sums, in numbers, of the weights that are worked on together: 2 MiB of float32.
_TABLES = 1 << 19


def stacked_codebook_grad(
    gradients: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients in float32; see :func:`pvopt_kernels.stacked_codebook_grad`."""
    group_size = codebooks.shape[3]
    if not (compiled(codes[..., 0].numel() * group_size) and group_size <= MAX_GROUP):
        return in_torch(gradients, codes, codebooks, scales, out_group)
    # Before the results: none of these may lie in the hole that it leaves behind.
    tables = scratch(_tables_of(codes, codebooks, scales))
    of_books = torch.empty(codebooks.shape, dtype=torch.float32)
    of_scales = torch.empty(scales.shape, dtype=torch.float32)
    for dense in listed(gradients):
        part = dense.part
        stack = codes[part], codebooks[part], scales[part]
        _write_gradients(dense, *stack, out_group, tables, of_books[part], of_scales[part])
    return of_books, of_scales


def _slabs_of(codes: Tensor, codebooks: Tensor, scales: Tensor) -> int:
    """Return how many tables a weight has: as many as its shape says, whatever is stacked."""
    _, rows, cols, number = codes.shape
    entries, group_size = codebooks.shape[2:]
    count = slabs(rows * cols * group_size, number * entries * group_size)
    return min(count, rows * scales.shape[2])


def _tables_of(codes: Tensor, codebooks: Tensor, scales: Tensor) -> int:
    """Return how many numbers the tables of the weights have that are worked on together."""
    count = _slabs_of(codes, codebooks, scales)
    return 0 if count == 1 else max(_TABLES, count * codebooks[0].numel())


def _write_gradients(
    dense: Listed,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    tables: np.ndarray,
    of_books: Tensor,
    of_scales: Tensor,
) -> None:
    """Write the gradients of a stack whose dense gradients a compiled loop can read."""
    from ._compiled.codebook_grad import codebook_grad_kernel, tables_kernel

    weights, rows, _, number = codes.shape
    entries, group_size = codebooks.shape[2:]
    entry_rows = number * entries
    count = _slabs_of(codes, codebooks, scales)
    together = weights if count == 1 else max(1, _TABLES // (count * entry_rows * group_size))
    kernel, add = codebook_grad_kernel(group_size, number, out_group), tables_kernel(group_size)
    for first in range(0, weights, together):
        part = slice(first, first + together)
        books = of_books[part].view(-1).numpy()
        sums = books if count == 1 else tables
        arrays = stack_arrays(codes[part], codebooks[part], scales[part])
        kernel(
            *arrays, rows * scales.shape[2], dense.addresses[part], dense.kind, count, sums,
            of_scales[part].view(-1).numpy(), size=len(codes[part]) * count,
        )  # fmt: skip
        if count > 1:
            size = len(codes[part]) * entry_rows
            add(sums, count, entry_rows, books, size=size, least=4096 // count)
