"""Squared distances of decoded groups to their targets."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["code_sq_errors"]


def code_sq_errors(target: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    """Return ``[G]`` squared errors; see :func:`pvopt_kernels.code_sq_errors`."""
    exact = torch.promote_types(torch.promote_types(target.dtype, codebooks.dtype), scales.dtype)
    exact = torch.promote_types(exact, torch.float32)
    target, codebooks, scales = target.to(exact), codebooks.to(exact), scales.to(exact)
    if target.numel() == 0:
        return target.new_zeros(len(target))
    # int32 indices: no wider copy of the codes than index_select needs.
    columns = codes.int().unbind(1)
    total = torch.zeros_like(target)
    for book, column in zip(codebooks, columns, strict=True):
        total += book.index_select(0, column)  # [G, g]
    scaled = total.view(len(scales), -1).mul_(scales[:, None]).view_as(target)
    return torch.sub(target, scaled, out=scaled).square_().sum(1)
