"""Gradients of codebooks and scales from a dense gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .decode import split, sum_entries, unsigned
from .sum_by_code import sum_by_code

__all__ = ["codebook_grad"]


def codebook_grad(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return both gradients in at least float32; see :func:`pvopt_kernels.codebook_grad`."""
    rows, cols = codes.shape[:2]
    total = sum_entries(codes, codebooks)
    groups = split(gradient.to(total.dtype), rows, cols, out_group)  # [G, g]
    by_scale = (scales.numel(), -1 if scales.numel() else 0)
    of_scales = (groups.reshape(by_scale) * total.view(by_scale)).sum(1).view(scales.shape)
    # The memory of the sums is free now.
    scale = scales.reshape(-1, 1).to(total.dtype)
    torch.mul(groups.reshape(by_scale), scale, out=total.view(by_scale))
    flat = codes.reshape(-1, codes.shape[-1])
    books = [sum_by_code(total, unsigned(c).long(), codebooks.shape[1]) for c in flat.unbind(1)]
    return torch.stack(books), of_scales
