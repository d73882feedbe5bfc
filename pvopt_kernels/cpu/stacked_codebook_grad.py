"""Gradients of the codebooks and scales of a stack of weights on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.reference.stacked_codebook_grad import stacked_codebook_grad as in_torch

from ._arrays import MAX_GROUP, compiled
from ._lists import Listed, listed
from .decode_into import stack_arrays
from .sum_by_code import slabs

__all__ = ["codebook_grad_listed", "stacked_codebook_grad"]

# Tables of sums, in numbers, of the weights that are worked on together: 2 MiB of float32.
_TABLES = 1 << 19


def stacked_codebook_grad(
    gradients: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients in float32; see :func:`pvopt_kernels.stacked_codebook_grad`."""
    group_size = codebooks.shape[3]
    if not (compiled(codes[..., 0].numel() * group_size) and group_size <= MAX_GROUP):
        return in_torch(gradients, codes, codebooks, scales, out_group)
    of_books = torch.empty(codebooks.shape, dtype=torch.float32)
    of_scales = torch.empty(scales.shape, dtype=torch.float32)
    for dense in listed(gradients):
        part = dense.part
        stack = codes[part], codebooks[part], scales[part]
        codebook_grad_listed(dense, *stack, out_group, of_books[part], of_scales[part])
    return of_books, of_scales


def codebook_grad_listed(
    dense: Listed,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    of_books: Tensor,
    of_scales: Tensor,
) -> None:
    """Write the gradients of a stack whose dense gradients a compiled loop can read."""
    from ._compiled.codebook_grad import codebook_grad_kernel, tables_kernel

    weights, rows, cols, number = codes.shape
    entries, group_size = codebooks.shape[2:]
    entry_rows = number * entries
    # As many tables a weight as its own shape says, whatever it is stacked with.
    count = slabs(rows * cols * group_size, entry_rows * group_size)
    count = min(count, rows * scales.shape[2])
    together = weights if count == 1 else max(1, _TABLES // (count * entry_rows * group_size))
    kernel, add = codebook_grad_kernel(group_size, number, out_group), tables_kernel(group_size)
    tables = torch.empty(
        0 if count == 1 else min(together, weights) * count * entry_rows, group_size
    )
    for first in range(0, weights, together):
        part = slice(first, first + together)
        books = of_books[part].view(-1).numpy()
        sums = books if count == 1 else tables.view(-1).numpy()
        arrays = stack_arrays(codes[part], codebooks[part], scales[part])
        kernel(
            *arrays, rows * scales.shape[2], dense.addresses[part], dense.kind, count, sums,
            of_scales[part].view(-1).numpy(), size=len(codes[part]) * count,
        )  # fmt: skip
        if count > 1:
            size = len(codes[part]) * entry_rows
            add(sums, count, entry_rows, books, size=size, least=4096 // count)
