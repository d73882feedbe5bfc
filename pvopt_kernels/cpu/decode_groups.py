"""Some groups of a stack of codes, codebooks and scales, decoded on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.reference.decode_groups import decode_groups as in_torch

from ._arrays import MAX_GROUP, compiled, integers, single
from .gather_groups import LEAST

__all__ = ["decode_groups"]


def decode_groups(
    groups: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, per_scale: int
) -> Tensor:
    """Return ``[n, g]``; see :func:`pvopt_kernels.reference.decode_groups`."""
    size, (weights, number, entries, group_size) = len(groups), codebooks.shape
    fits = compiled(size * group_size) and group_size <= MAX_GROUP
    if not (fits and codebooks.dtype == torch.float32):
        return in_torch(groups, codes, codebooks, scales, per_scale)
    from ._compiled.decode import decode_groups_kernel

    out = torch.empty(size, group_size, dtype=torch.float32)
    kernel = decode_groups_kernel(group_size, number)
    kernel(
        integers(groups), size // weights, integers(codes), single(codebooks), entries,
        single(scales), per_scale, out.view(-1).numpy(), size=size, least=LEAST,
    )  # fmt: skip
    return out
