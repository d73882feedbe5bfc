"""Some groups of a stack of codes, codebooks and scales: look the entries up, add, scale."""

from __future__ import annotations

import torch
from torch import Tensor

from .decode import unsigned

__all__ = ["decode_groups", "scales_of"]


def scales_of(groups: Tensor, scales: Tensor, per_scale: int) -> Tensor:
    """Return the scale of each group, ``[n, 1]``."""
    number = groups.div(max(1, per_scale), rounding_mode="floor")
    return scales.reshape(-1, 1).index_select(0, number)


def decode_groups(
    groups: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, per_scale: int
) -> Tensor:
    """Return ``[n, g]`` for the codes ``[n, M]`` of some groups.

    See :func:`pvopt_kernels.decode_groups`; ``per_scale`` groups share a scale.
    """
    count, number, entries, size = codebooks.shape
    if len(groups) == 0:
        return codebooks.new_empty(0, size)
    # Codes count through all books of the stack. int32: no wider copy than index_select needs.
    index = unsigned(codes).view(count, -1, number)
    end = count * number * entries
    first = torch.arange(0, end, entries, dtype=torch.int32, device=codes.device)
    columns = (index + first.view(count, 1, number)).view(-1, number).unbind(1)
    exact = torch.promote_types(codebooks.dtype, torch.float32)
    flat = codebooks.reshape(-1, size).to(exact)
    total = flat.index_select(0, columns[0])
    for column in columns[1:]:
        total += flat.index_select(0, column)
    total *= scales_of(groups, scales, per_scale)
    return total.to(codebooks.dtype)
