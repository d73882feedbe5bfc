"""Products with a weight that is decoded in registers, for any format of tiles."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._compile_spec import CompileSpec
from ._launch import interpreted, launch
from ._tiles import piece_columns
from ._variants import Variant
from ._weights import Weight

__all__ = ["matmul_specs", "multiply"]


@triton.jit
def matvec_kernel(
    x,
    y,
    source,
    num_rows,
    columns,
    num_pieces,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One token: every thread adds up its own columns, a program reduces once at its end."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C, WIDTH], dtype=tl.float32)
    for start in range(0, num_pieces, BLOCK_C):
        pieces = start + tl.arange(0, BLOCK_C)
        column, exists = piece_columns(pieces, columns, IN_GROUP, WIDTH)
        part = tl.load(x + column, mask=exists, other=0.0).to(tl.float32)  # [C, W]
        weight = TILE(source, rows, pieces, num_rows, columns, IN_GROUP, WIDTH, FORMAT)
        total += weight * part[None, :, :]
    found = tl.sum(tl.sum(total, 2), 1)
    tl.store(y + rows, found.to(y.dtype.element_ty), mask=rows < num_rows)


@triton.jit
def matmul_kernel(
    x,
    y,
    source,
    tokens,
    num_rows,
    columns,
    num_pieces,
    pieces_per_split,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    TILE: tl.constexpr,
    OPERAND: tl.constexpr,  # dtype of the factors
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``y[split] = x weight'`` over the pieces of a split."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    split = tl.program_id(2)
    first = split * pieces_per_split
    last = tl.minimum(first + pieces_per_split, num_pieces)
    total = tl.zeros([BLOCK_R, BLOCK_T], dtype=tl.float32)
    for start in range(first, last, BLOCK_C):  # a split is a whole number of steps
        pieces = start + tl.arange(0, BLOCK_C)
        column, exists = piece_columns(pieces, columns, IN_GROUP, WIDTH)
        at = token.to(tl.int64)[:, None, None] * columns + column[None, :, :]
        mask = (token < tokens)[:, None, None] & exists[None, :, :]
        part = tl.load(x + at, mask=mask, other=0.0)  # [T, C, W]
        weight = TILE(source, rows, pieces, num_rows, columns, IN_GROUP, WIDTH, FORMAT)
        left = tl.reshape(weight.to(x.dtype.element_ty).to(OPERAND), [BLOCK_R, BLOCK_C * WIDTH])
        right = tl.reshape(part.to(OPERAND), [BLOCK_T, BLOCK_C * WIDTH])
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    at = (split * tokens + token).to(tl.int64)[None, :] * num_rows + rows[:, None]
    mask = (rows < num_rows)[:, None] & (token < tokens)[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def matmul_transposed_kernel(
    x,
    y,
    source,
    tokens,
    num_rows,
    columns,
    num_pieces,
    rows_per_split,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    TILE: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``y[split] = x weight`` over the rows of a split."""
    pieces = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    split = tl.program_id(2)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, num_rows)
    total = tl.zeros([BLOCK_T, BLOCK_C * WIDTH], dtype=tl.float32)
    for start in range(first, last, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        at = token.to(tl.int64)[:, None] * num_rows + rows[None, :]
        mask = (token < tokens)[:, None] & (rows < last)[None, :]
        left = tl.load(x + at, mask=mask, other=0.0).to(OPERAND)  # [T, R]
        weight = TILE(source, rows, pieces, last, columns, IN_GROUP, WIDTH, FORMAT)
        right = tl.reshape(weight.to(x.dtype.element_ty).to(OPERAND), [BLOCK_R, BLOCK_C * WIDTH])
        total = tl.dot(left, right, total, input_precision="ieee")
    column, exists = piece_columns(pieces, columns, IN_GROUP, WIDTH)
    at = (split * tokens + token).to(tl.int64)[:, None, None] * columns + column[None, :, :]
    mask = (token < tokens)[:, None, None] & exists[None, :, :]
    found = tl.reshape(total, [BLOCK_T, BLOCK_C, WIDTH])
    tl.store(y + at, found.to(y.dtype.element_ty), mask=mask)


# Programs that keep a GPU busy: 4 blocks for each of the 132 multiprocessors of an H100 (108 of an
# A100). A constant, not the device's number: the order of the sums is then the same everywhere.
_PROGRAMS = 528
# One token reads 2 to 4 bits a weight from memory and one multiply-add each is what the CUDA cores
# keep up with: 6e12 weights a second at 2 bits and 1.5 TB/s, against 9.7e12 multiply-adds of an
# A100. From two tokens on the tensor cores take over.
_WARPS = 4
_MATVEC_ROWS = 4
_MATVEC_COLUMNS = 512  # with 4 rows 16 accumulators a thread; 64 to 90 registers on sm_80, sm_90


def _matvec_blocks(width: int) -> dict[str, int]:
    return {"BLOCK_R": _MATVEC_ROWS, "BLOCK_C": _MATVEC_COLUMNS // width}


def _blocks(tokens: int, half: bool, transposed: bool, width: int) -> dict[str, int]:
    """Return the sizes of a tile; 16 is the least that tensor cores take.

    In float32 a dot is unrolled over the whole depth of the tile: at a depth of 64 the transposed
    product spills on sm_80 (7.7 KiB) and sm_90, at 16 none does. The other product spills there
    with 32 tokens and pieces of 64 columns (160 bytes; 16 with 32 rows). In half precision the
    transposed one spills 31 scalar registers on gfx942 at a depth of 64.
    """
    few = tokens <= 16
    if transposed:  # depth: rows
        block_t = 16 if few else (64 if half else 32)
        block_r = 32 if half else 16
        columns = 64 if few else 32
    else:  # depth: columns
        few = few or (not half and width > 32)
        block_t = 16 if few else (64 if half else 32)
        block_r = 32 if few else 64
        columns = 64 if few else 32
    return {"BLOCK_T": block_t, "BLOCK_R": block_r, "BLOCK_C": max(1, columns // width)}


def multiply(x: Tensor, weight: Weight, transposed: bool) -> Tensor:
    """Return ``x @ weight.T``, or ``x @ weight`` if transposed, for any format.

    Args:
        x: ``[tokens, columns]`` or ``[tokens, rows]``.
        weight: as arguments of the kernels.
        transposed: which of the two products.

    Returns:
        ``[tokens, rows]`` or ``[tokens, columns]`` of the dtype of ``x``.
    """
    x = x.contiguous()
    tokens, width = len(x), weight.constants["WIDTH"]
    sizes = weight.source, weight.rows, weight.columns, weight.pieces
    if tokens == 1 and not transposed:
        y = torch.empty(1, weight.rows, dtype=x.dtype, device=x.device)
        constants = weight.constants | _matvec_blocks(width)
        grid = (triton.cdiv(weight.rows, _MATVEC_ROWS),)
        launch(matvec_kernel, grid, x.device, x, y, *sizes, **constants, num_warps=_WARPS)
        return y
    half = x.dtype != torch.float32
    blocks = _blocks(tokens, half, transposed, width)
    if transposed:
        kernel, outputs = matmul_transposed_kernel, weight.columns
        depth, step = weight.rows, blocks["BLOCK_R"]
        across = triton.cdiv(weight.pieces, blocks["BLOCK_C"])
    else:
        kernel, outputs = matmul_kernel, weight.rows
        depth, step = weight.pieces, blocks["BLOCK_C"]
        across = triton.cdiv(weight.rows, blocks["BLOCK_R"])
    programs = across * triton.cdiv(tokens, blocks["BLOCK_T"])
    # Sums over the depth are split where the tiles alone leave the GPU idle, at least 4 steps each.
    splits = max(1, min(_PROGRAMS // max(1, programs), depth // (4 * step)))
    per_split = triton.cdiv(triton.cdiv(depth, splits), step) * step
    splits = triton.cdiv(depth, per_split) if depth else 1
    dtype = x.dtype if splits == 1 else torch.float32
    y = torch.empty(splits, tokens, outputs, dtype=dtype, device=x.device)
    # The interpreter's dot takes the raw bits of bfloat16 for numbers.
    in_bfloat16 = x.dtype == torch.bfloat16 and not interpreted()
    operand = {torch.float32: tl.float32, torch.float16: tl.float16}.get(x.dtype, tl.float32)
    operand = tl.bfloat16 if in_bfloat16 else operand
    constants = weight.constants | blocks | {"OPERAND": operand}
    grid = (across, triton.cdiv(tokens, blocks["BLOCK_T"]), splits)
    arguments = (x, y, sizes[0], tokens, *sizes[1:], per_split)
    launch(kernel, grid, x.device, *arguments, **constants, num_warps=_WARPS, num_stages=2)
    return y[0] if splits == 1 else y.sum(0).to(x.dtype)  # a fixed order


def matmul_specs(variants: dict[str, tuple[str, Variant]]) -> list[CompileSpec]:
    """Return the specs of all products for labelled pairs of a dtype and a format."""
    specs = []
    for label, (dtype, (source, constants)) in variants.items():
        width = constants["WIDTH"]
        sizes: dict[str, Any] = {"source": source}
        sizes |= dict.fromkeys(("num_rows", "columns", "num_pieces"), "i32")
        tensors: dict[str, Any] = {"x": f"*{dtype}", "y": f"*{dtype}"}
        specs.append(
            CompileSpec(
                matvec_kernel,
                tensors | sizes,
                constants | _matvec_blocks(width),
                label,
                num_warps=_WARPS,
            )
        )
        for tokens in (16, 4096):
            for transposed in (False, True):
                kernel = matmul_transposed_kernel if transposed else matmul_kernel
                split = "rows_per_split" if transposed else "pieces_per_split"
                blocks = _blocks(tokens, dtype != "fp32", transposed, width)
                operand = {
                    "OPERAND": getattr(
                        tl, {"fp32": "float32", "fp16": "float16"}.get(dtype, "bfloat16")
                    )
                }
                specs.append(
                    CompileSpec(
                        kernel,
                        tensors | sizes | {"tokens": "i32", split: "i32"},
                        constants | blocks | operand,
                        f"{label}, {tokens} tokens",
                        num_warps=_WARPS,
                    )
                )
    return specs
