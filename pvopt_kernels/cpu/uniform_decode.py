"""Dense weights from packed uniform grids on CPUs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.reference.uniform_decode import uniform_decode as in_torch

from ._arrays import compiled, integers, single

__all__ = ["THREAD_WEIGHTS", "grid_arrays", "uniform_decode"]

# Weights that make another thread worth its start: 20 us of work on one, at 0.3 ns a weight.
THREAD_WEIGHTS = 1 << 16


def uniform_decode(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    columns: int,
    memory: Tensor | None = None,
) -> Tensor:
    """Return the dense weight; see :func:`pvopt_kernels.uniform_decode`.

    The result may be in ``memory``, ``[rows, columns]`` float32 and contiguous, if that is given.
    """
    rows = len(packed)
    if not compiled(rows * columns):
        return in_torch(packed, scales, zeros, bits, columns)
    from ._compiled.uniform import uniform_decode_kernel

    dense = torch.empty(rows, columns) if memory is None else memory
    arrays = grid_arrays(packed, scales, zeros, bits, columns)
    kernel = uniform_decode_kernel()
    kernel(*arrays, dense.view(-1).numpy(), size=rows, least=max(1, THREAD_WEIGHTS // columns))
    return dense.to(scales.dtype)


def grid_arrays(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int
) -> tuple[object, ...]:
    """Return what both compiled loops over a grid read, in their order."""
    points = np.empty(0, np.float32) if zeros is None else single(zeros)
    centre = np.float32((1 << bits) // 2)
    return integers(packed), bits, columns, single(scales), points, centre, scales.shape[1]
