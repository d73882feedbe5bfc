"""Tensors copied into others past the caches, on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.reference.copy_into import copy_into as in_torch

from ._arrays import compiled

__all__ = ["copy_into"]

# Numbers that some cache may still have when they are read next.
_CACHED = 1 << 23
# Numbers that are copied in one piece.
_PIECE = 1 << 18


def copy_into(outs: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy the tensors; see :func:`pvopt_kernels.copy_into`."""
    count = sum(out.numel() for out in outs)
    if count < _CACHED or not (compiled(count) and all(map(_streams, outs, sources))):
        return in_torch(outs, sources)
    from ._compiled.copying import copy_kernel

    places: list[tuple[int, int, int]] = []
    for out, source in zip(outs, sources, strict=True):
        for first in range(0, out.numel(), _PIECE):
            begins = source.data_ptr() + 4 * first, out.data_ptr() + 4 * first
            places.append((*begins, min(_PIECE, out.numel() - first)))
    columns = [np.array(column, np.int64) for column in zip(*places, strict=True)]
    copy_kernel()(*columns, np.empty(0, np.float32), size=len(places))
    return None


def _streams(out: Tensor, source: Tensor) -> bool:
    """Whether a tensor can be copied in whole vectors that go past the caches."""
    single = out.dtype == source.dtype == torch.float32
    return single and out.is_contiguous() and source.is_contiguous() and out.data_ptr() % 64 == 0
