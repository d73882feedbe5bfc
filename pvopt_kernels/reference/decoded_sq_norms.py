"""Squared norms of groups between targets and a stack of weights, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decode import decode
from .group_sq_norms import group_sq_norms

__all__ = ["decoded_sq_norms"]


def decoded_sq_norms(
    targets: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return changes and norms; see :func:`pvopt_kernels.decoded_sq_norms`."""
    exact = torch.promote_types(codebooks.dtype, torch.float32)
    for target in targets:
        exact = torch.promote_types(exact, target.dtype)
    weights, rows, cols, _ = codes.shape
    changes = torch.empty(weights, rows * cols, dtype=exact, device=codes.device)
    norms = torch.empty(weights, dtype=exact, device=codes.device)
    in_group = codebooks.shape[3] // out_group
    stack = codes, codebooks.to(exact), scales.to(exact)
    for w, (target, *weight) in enumerate(zip(targets, *stack, strict=True)):
        dense = decode(weight[0], weight[1], weight[2], out_group)
        changes[w] = group_sq_norms(target, dense, out_group, in_group)
        norms[w] = dense.square().sum()
    return changes, norms
