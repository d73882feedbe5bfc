"""Nearest points of E8P on CPUs."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.e8p_tables import NUM_EVEN, SHIFTS, e8p_absolute
from pvopt_kernels.reference.e8p_assign import e8p_assign as in_torch

from ._arrays import compiled, single

__all__ = ["e8p_assign"]

# Lists of the best are sorted by insertion.
_MAX_CODES = 64


def e8p_assign(target: Tensor, k: int, *, metric: Tensor | None) -> Tensor:
    """Return codes ``[n, k, 2]``; see :func:`pvopt_kernels.e8p_assign`."""
    if not (compiled(512 * len(target)) and k <= _MAX_CODES):
        return in_torch(target, k, metric=metric)
    from ._compiled.e8p_assign import e8p_kernel

    points = single(target)
    weights = points if metric is None else single(metric)
    columns, half_squares, padding, numbers, evens, masks = _tables()
    offsets = half_squares if metric is None else padding
    arguments = columns, offsets, numbers, evens
    shifts = np.array(SHIFTS, np.float32)
    codes = torch.empty(len(target), k, 2, dtype=torch.int64)
    out = codes.view(-1).numpy()
    kernel = e8p_kernel(metric is not None)
    kernel(points, weights, shifts, *arguments, masks, k, out, size=len(target), least=64)
    return codes


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]:
    """Return what the kernel reads; see :func:`._compiled.e8p_assign.e8p_kernel`."""
    from ._compiled.e8p_assign import LANES

    vectors = e8p_absolute().numpy()
    evens = -(-NUM_EVEN // LANES) * LANES
    padded = evens - (-(len(vectors) - NUM_EVEN) // LANES) * LANES
    lanes = np.arange(len(vectors))
    lanes[NUM_EVEN:] += evens - NUM_EVEN
    columns = np.zeros((8, padded), np.float32)
    columns[:, lanes] = vectors.T
    padding = np.full(padded, np.inf, np.float32)
    padding[lanes] = 0
    numbers = np.zeros(padded, np.int64)
    numbers[lanes] = np.arange(len(vectors))
    half_squares = padding + (columns**2).sum(0) / 2
    low = np.arange(LANES) >> np.arange(4)[:, None] & 1  # [4, LANES]
    odd = low.sum(0) % 2
    masks = np.concatenate([low, odd[None], 1 - odd[None]]).astype(np.float32)
    return columns.reshape(-1), half_squares, padding, numbers, evens, masks.reshape(-1)
