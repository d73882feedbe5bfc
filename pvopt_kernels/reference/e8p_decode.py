"""Points of E8P from tables of vectors and signs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.e8p_tables import signed_tables

__all__ = ["e8p_decode"]


def e8p_decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the points, ``[..., 8]``; see :func:`pvopt_kernels.e8p_decode`."""
    vectors, signs, shifts = (table.to(codes.device, dtype) for table in signed_tables())
    vector, sign = (code.reshape(-1).int() for code in codes.unbind(-1))
    points = vectors.index_select(0, vector).mul_(signs.index_select(0, sign))
    points.add_(shifts.index_select(0, sign))
    return points.view(*codes.shape[:-1], 8)
