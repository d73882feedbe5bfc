"""Dense weights from packed uniform grids."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.packing import unpack_rows

__all__ = ["levels", "uniform_decode"]


def levels(packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int) -> Tensor:
    """Return ``q - z`` as ``[scales, columns of a scale]``, in at least float32."""
    exact = torch.promote_types(scales.dtype, torch.float32)
    count = scales.numel()
    codes = unpack_rows(packed, bits, columns).to(exact).view(count, -1 if count else 0)
    return codes - ((1 << bits) // 2 if zeros is None else zeros.reshape(-1, 1).to(exact))


def uniform_decode(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int
) -> Tensor:
    """Return the dense weight; see :func:`pvopt_kernels.uniform_decode`."""
    level = levels(packed, scales, zeros, bits, columns)
    level.mul_(scales.reshape(-1, 1))
    return level.view(len(packed), columns).to(scales.dtype)
