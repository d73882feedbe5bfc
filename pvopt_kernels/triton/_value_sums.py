"""Sums over the weights of each scale: what the gradients of scales and zero points are."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._compile_spec import CompileSpec
from ._launch import launch
from ._lists import Listed, kind_of
from ._tiles import dense_of, piece_columns, source_of
from ._variants import Variant
from ._weights import Weight

__all__ = ["listed_value_sums", "value_sums", "value_sums_specs"]

_COLUMNS = 1024  # of one step: 8 of each of 128 threads, one or two loads of 16 bytes
_WARPS = 4


@triton.jit
def value_sums_kernel(
    gradient,
    products,
    sums,
    source,
    scales_per_row,
    columns_per_scale,
    num_rows,
    columns,
    KIND: tl.constexpr,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    TILE: tl.constexpr,
    OUT_GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A program per scale: ``products = sum gradient * tile``, ``sums = sum gradient``."""
    w = tl.program_id(1).to(tl.int64)
    gradient = dense_of(gradient, w, KIND)
    source = source_of(source, w, num_rows, IN_GROUP, FORMAT, KIND)
    parts: tl.constexpr = (IN_GROUP + WIDTH - 1) // WIDTH
    block = tl.program_id(0) // scales_per_row
    first = tl.program_id(0) % scales_per_row * columns_per_scale  # column
    last = first + columns_per_scale
    product = tl.zeros([BLOCK_C, WIDTH], dtype=tl.float32)
    total = tl.zeros([BLOCK_C, WIDTH], dtype=tl.float32)
    for i in range(OUT_GROUP):
        row = block * OUT_GROUP + i
        rows = row + tl.arange(0, 1)
        end = tl.cdiv(last, IN_GROUP) * parts
        for start in range(first // IN_GROUP * parts, end, BLOCK_C):
            pieces = start + tl.arange(0, BLOCK_C)
            column, exists = piece_columns(pieces, columns, IN_GROUP, WIDTH)
            mask = exists & (column >= first) & (column < last)
            at = gradient + row.to(tl.int64) * columns + column
            slope = tl.load(at, mask=mask, other=0.0).to(tl.float32)  # [C, W]
            level = TILE(source, rows, pieces, num_rows, columns, IN_GROUP, WIDTH, FORMAT)
            product += slope * tl.sum(level, 0)  # of its single row
            total += slope
    scale = w * tl.num_programs(0) + tl.program_id(0)
    tl.store(products + scale, tl.sum(product))
    tl.store(sums + scale, tl.sum(total))


def value_sums(gradient: Tensor, weight: Weight, out_group: int) -> tuple[Tensor, Tensor]:
    """Return the sums of gradient times level, and of the gradient, over each scale.

    Args:
        gradient: ``[rows, columns]``.
        weight: decoded without its scales.
        out_group: rows that share a scale.

    Returns:
        ``[rows / out_group, S]`` each, float32.
    """
    per_row = weight.source[-1]
    shape = weight.rows // out_group, per_row
    return _launch_sums(gradient.contiguous(), weight, out_group, shape, None)


def listed_value_sums(dense: Listed, weight: Weight, out_group: int) -> Tensor:
    """Return the sums of gradient times level over each scale of a stack of codebooks.

    Returns:
        ``[W, rows / out_group, S]`` float32.
    """
    shape = len(dense.tensors), weight.rows // out_group, weight.source[-1]
    return _launch_sums(dense.addresses, weight, out_group, shape, dense.kind)[0]


def _launch_sums(
    gradient: Tensor, weight: Weight, out_group: int, shape: tuple[int, ...], kind: Any
) -> tuple[Tensor, Tensor]:
    per_row = shape[-1]
    products, sums = (
        torch.empty(shape, dtype=torch.float32, device=gradient.device) for _ in range(2)
    )
    constants = weight.constants | {
        "OUT_GROUP": out_group,
        "BLOCK_C": _COLUMNS // weight.constants["WIDTH"],
    }
    arguments = (gradient, products, sums, weight.source, per_row)
    sizes = (weight.columns_per_scale, weight.rows, weight.columns, kind)
    grid = shape[-2] * per_row, 1 if kind is None else shape[0]
    launch(
        value_sums_kernel, grid, gradient.device, *arguments, *sizes, **constants, num_warps=_WARPS
    )
    return products, sums


def value_sums_specs(
    variants: dict[str, tuple[str, Variant]], *, stacked: bool = False
) -> list[CompileSpec]:
    """Return the specs for labelled pairs of a dtype and a format."""
    specs = []
    for label, (dtype, (source, constants)) in variants.items():
        gradient = "*i64" if stacked else f"*{dtype}"
        signature = {"gradient": gradient, "products": "*fp32", "sums": "*fp32"}
        sizes = ("scales_per_row", "columns_per_scale", "num_rows", "columns")
        kind = kind_of(dtype) if stacked else None
        more = {"KIND": kind, "OUT_GROUP": 1, "BLOCK_C": _COLUMNS // constants["WIDTH"]}
        specs.append(
            CompileSpec(
                value_sums_kernel,
                signature | {"source": source} | dict.fromkeys(sizes, "i32"),
                constants | more,
                label,
                num_warps=_WARPS,
            )
        )
    return specs
