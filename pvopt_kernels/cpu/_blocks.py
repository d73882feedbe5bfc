"""Products with a weight that is decoded block by block of its rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["multiply_blocks"]

# Weights decoded at a time, 8 MiB of float32. For 4096 x 11008 weights on two cores 64 tokens take
# 34 ms with these, 43 with half as many; four tokens take 13 and 11.
_BLOCK = 1 << 21


def multiply_blocks(
    x: Tensor,
    decode: Callable[[slice, Tensor], Tensor],
    shape: tuple[int, int],
    transposed: bool,
    *,
    rows_per_unit: int = 1,
) -> Tensor:
    """Multiply by a weight without keeping all of it dense.

    Args:
        x: ``[tokens, columns]``, or ``[tokens, rows]`` if transposed; any floating dtype.
        decode: returns the dense rows of some units, for which it may use the float32 memory that
            it is given. With new memory for every block, pages that the system has to provide were
            34 of the 45 ms of four tokens and 4096 x 11008 weights.
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
    units = rows // rows_per_unit
    memory = torch.empty(min(step, units) * rows_per_unit, columns)
    for first in range(0, units, step):
        last = min(first + step, units)
        place = slice(first * rows_per_unit, last * rows_per_unit)
        dense = decode(slice(first, last), memory[: place.stop - place.start])
        if transposed:
            out.addmm_(inputs[:, place], dense)
        else:
            torch.mm(inputs, dense.T, out=out[:, place])
    return out.to(x.dtype)
