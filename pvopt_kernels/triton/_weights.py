"""Quantized weights as arguments of the kernels that decode tiles of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ._tiles import codebook_tile, grid_tile

__all__ = ["Weight", "codebook_weight", "codebook_width", "grid_weight", "unsigned"]

# Columns of a piece at most: a tile of 16 to 64 rows of it is what a block holds in registers.
_MAX_WIDTH = 64


@dataclass(frozen=True)
class Weight:
    """What a kernel needs to decode tiles of a weight.

    Args:
        source: pointers and sizes for the tile function.
        rows: of the dense weight.
        columns: of the dense weight.
        pieces: of a row (see ``_tiles``).
        columns_per_scale: neighbouring columns that share a scale.
        constants: ``IN_GROUP``, ``WIDTH``, ``FORMAT`` and ``TILE`` of the kernels.
    """

    source: tuple[Any, ...]
    rows: int
    columns: int
    pieces: int
    columns_per_scale: int
    constants: dict[str, Any]


def unsigned(codes: Tensor) -> Tensor:
    """View narrow signed codes as unsigned ones, contiguous."""
    views = {torch.int8: torch.uint8, torch.int16: torch.uint16}
    return codes.contiguous().view(views.get(codes.dtype, codes.dtype))


def codebook_width(in_group: int) -> int:
    """Return the width of a piece: a power of 2, so groups of other sizes are filled up."""
    return min(triton.next_power_of_2(in_group), _MAX_WIDTH)


def codebook_weight(
    codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int, *, scaled: bool = True
) -> Weight:
    """Describe a weight of additive codebooks, or each of a stack, with or without its scales."""
    rows, cols, books = codes.shape[-3:]
    entries, group_size = codebooks.shape[-2:]
    in_group = group_size // out_group
    width = codebook_width(in_group)
    per_scale = cols // max(1, scales.shape[-1])  # groups
    source = (unsigned(codes), codebooks.contiguous(), scales.contiguous())
    return Weight(
        (*source, cols, per_scale, scales.shape[-1]),
        rows * out_group,
        cols * in_group,
        cols * triton.cdiv(in_group, width),
        per_scale * in_group,
        {
            "IN_GROUP": in_group,
            "WIDTH": width,
            "FORMAT": (books, entries, out_group, scaled),
            "TILE": codebook_tile,
        },
    )


def grid_weight(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    columns: int,
    *,
    scaled: bool = True,
) -> Weight:
    """Describe a packed uniform grid, with or without its scales."""
    scales = scales.contiguous()
    per_scale = columns // max(1, scales.shape[1])
    return Weight(
        (
            packed.contiguous(),
            scales,
            scales if zeros is None else zeros.contiguous(),  # not read if None
            packed.shape[1],
            per_scale,
            scales.shape[1],
        ),
        packed.shape[0],
        columns,
        triton.cdiv(columns, 8),
        per_scale,
        {
            "IN_GROUP": 8,
            "WIDTH": 8,
            "FORMAT": (bits, zeros is not None, per_scale % 8 == 0, scaled),
            "TILE": grid_tile,
        },
    )
