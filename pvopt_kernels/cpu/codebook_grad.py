"""Gradients of codebooks and scales on CPUs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.reference.codebook_grad import codebook_grad as in_torch

from ._arrays import MAX_GROUP, compiled, integers, single
from .sum_by_code import slabs

__all__ = ["codebook_grad"]


def codebook_grad(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients in float32; see :func:`pvopt_kernels.codebook_grad`."""
    number, entries, group_size = codebooks.shape
    if not (compiled(gradient.numel()) and group_size <= MAX_GROUP):
        return in_torch(gradient, codes, codebooks, scales, out_group)
    from ._compiled.codebook_grad import codebook_grad_kernel

    rows, cols, _ = codes.shape
    if out_group > 1:
        blocks = gradient.reshape(rows, out_group, cols, group_size // out_group)
        gradient = blocks.transpose(1, 2)
    tables = min(slabs(gradient.numel(), codebooks.numel()), scales.numel())
    sums = np.zeros((tables, number, entries, group_size), np.float32)
    of_scales = torch.empty(scales.shape, dtype=torch.float32)
    kernel = codebook_grad_kernel(group_size, number)
    per_scale = cols // scales.shape[1]
    arrays = integers(codes), single(codebooks), entries, single(scales), per_scale
    products = of_scales.view(-1).numpy()
    kernel(*arrays, single(gradient), sums.reshape(-1), products, size=tables)
    return torch.from_numpy(sums.sum(0)), of_scales
