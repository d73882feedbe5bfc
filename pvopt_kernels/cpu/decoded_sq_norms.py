"""Squared norms of groups between targets and a stack of weights, on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.reference.decoded_sq_norms import decoded_sq_norms as in_torch

from ._arrays import MAX_GROUP, compiled, scratch
from ._lists import listed
from .decode_into import stack_arrays

__all__ = ["decoded_sq_norms"]


def decoded_sq_norms(
    targets: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return changes and norms; see :func:`pvopt_kernels.decoded_sq_norms`."""
    group_size = codebooks.shape[3]
    if not (compiled(codes[..., 0].numel() * group_size) and group_size <= MAX_GROUP):
        return in_torch(targets, codes, codebooks, scales, out_group)
    from ._compiled.decoded_sq_norms import decoded_sq_norms_kernel

    weights, rows, cols, number = codes.shape
    changes = scratch(weights, rows * cols)
    # Norms of block rows, which are then added up in float64 by one thread.
    of_rows = np.empty((weights, rows), np.float32)
    kernel = decoded_sq_norms_kernel(group_size, number, out_group)
    for dense in listed(targets):
        part = dense.part
        arrays = stack_arrays(codes[part], codebooks[part], scales[part])
        out = changes[part].reshape(-1), of_rows[part].reshape(-1)
        size, least = len(dense.tensors) * rows, max(1, 4096 // (cols * out_group))
        kernel(*arrays, rows, dense.addresses, dense.kind, *out, size=size, least=least)
    norms = of_rows.sum(axis=1, dtype=np.float64).astype(np.float32)
    return torch.from_numpy(changes), torch.from_numpy(norms)
