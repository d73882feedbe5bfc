"""Checks that the operations on packed uniform grids share."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.packing import row_bytes

__all__ = ["check_grid"]


def check_grid(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int
) -> None:
    """Check the parts of a packed grid.

    Raises:
        ValueError: if shapes, devices or the width do not fit.
        TypeError: if a dtype does not.
    """
    check_tensors(packed=packed, scales=scales)
    check_integers(bits=bits, columns=columns)
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be in 1..8, got {bits}")
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}")
    check_floating(scales=scales, zeros=zeros)
    if zeros is not None and zeros.dtype != scales.dtype:
        raise TypeError(f"zeros must be {scales.dtype} like scales, got {zeros.dtype}")
    check_shape("packed", packed, "rows", row_bytes(columns, bits))
    check_shape("scales", scales, packed.shape[0], "S")
    check_shape("zeros", zeros, *scales.shape)
    check_same_device(packed=packed, scales=scales, zeros=zeros)
    if columns and (scales.shape[1] < 1 or columns % scales.shape[1]):
        raise ValueError(
            f"scales must have a number of columns that divides {columns}, got {scales.shape[1]}"
        )
