"""Points of E8P on CPUs."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.e8p_tables import signed_tables
from pvopt_kernels.reference.e8p_decode import e8p_decode as in_torch

from ._arrays import compiled, integers

__all__ = ["e8p_decode"]


def e8p_decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the points ``[..., 8]``; see :func:`pvopt_kernels.e8p_decode`."""
    if not compiled(4 * codes.numel()):
        return in_torch(codes, dtype)
    from ._compiled.e8p_decode import decode_kernel

    places, tables = integers(codes), _tables()
    points = torch.empty(*codes.shape[:-1], 8, dtype=torch.float32)
    decode_kernel()(places, *tables, points.view(-1).numpy(), size=len(places) // 2, least=4096)
    return points.to(dtype)  # all are multiples of 1/4 up to 11/4: exact in half precision


@functools.cache
def _tables() -> tuple[np.ndarray, ...]:
    return tuple(table.float().numpy().reshape(-1) for table in signed_tables())
