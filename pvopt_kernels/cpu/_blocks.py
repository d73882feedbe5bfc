"""Products with a weight that is decoded block by block of its rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["multiply_blocks"]

# Weights decoded at a time: 4 MiB of float32 do not leave the caches.
_BLOCK = 1 << 20


def multiply_blocks(
    x: Tensor,
    decode: Callable[[slice], Tensor],
    shape: tuple[int, int],
    transposed: bool,
    *,
    rows_per_unit: int = 1,
) -> Tensor:
    """Multiply by a weight without keeping all of it dense.

    Args:
        x: ``[tokens, columns]``, or ``[tokens, rows]`` if transposed; any floating dtype.
        decode: returns the dense float32 rows of some units.
        shape: rows and columns of the weight.
        transposed: whether to compute ``x W`` in place of ``x W'``.
        rows_per_unit: rows that can only be decoded together.

    Returns:
        ``[tokens, rows]``, or ``[tokens, columns]`` if transposed, in the dtype of ``x``.
    """
    rows, columns = shape
    inputs = x.to(torch.float32)
    out = torch.zeros(len(x), columns if transposed else rows)
    step = max(1, _BLOCK // (columns * rows_per_unit))
    for first in range(0, rows // rows_per_unit, step):
        dense = decode(slice(first, first + step))
        place = slice(first * rows_per_unit, (first + step) * rows_per_unit)
        if transposed:
            out.addmm_(inputs[:, place], dense)
        else:
            torch.mm(inputs, dense.T, out=out[:, place])
    return out.to(x.dtype)
