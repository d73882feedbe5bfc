# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Tiles of a weight, decoded in registers: what the decoding and multiplying kernels share.

A weight is cut along its columns into *pieces* of at most 64 columns, the part of one group that a
thread block holds at once. A tile function gets a source (pointers and sizes) and numbers of rows
and pieces, and returns their weights in float32. Kernels take the function as a constant, so that
every product is written once for all formats.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["codebook_tile", "dense_of", "grid_tile", "piece_columns", "source_of"]


@triton.jit
def dense_of(dense, w, KIND: tl.constexpr):
    """Return where a dense weight begins: ``dense`` says so, or lists the addresses of many.

    ``KIND`` is None, or the type of listed weights and whether all begin at multiples of 16 bytes.
    """
    if KIND is None:
        return dense
    else:
        address = tl.load(dense + w).to(tl.pointer_type(KIND[0]))
        if KIND[1]:
            address = tl.multiple_of(address, 16)
        return address


@triton.jit
def source_of(
    source, w, num_rows, IN_GROUP: tl.constexpr, FORMAT: tl.constexpr, KIND: tl.constexpr
):
    """Return the source of one weight of a stack of codebooks; without a stack, the source."""
    if KIND is None:
        return source
    else:
        codes, books, scales, cols, groups_per_scale, scales_per_row = source
        NUM_BOOKS: tl.constexpr = FORMAT[0]
        NUM_ENTRIES: tl.constexpr = FORMAT[1]
        OUT_GROUP: tl.constexpr = FORMAT[2]
        block = w * (num_rows // OUT_GROUP)  # the first block row of the weight; 64 bits
        return (
            codes + block * (cols * NUM_BOOKS),
            books + w * (NUM_BOOKS * NUM_ENTRIES * OUT_GROUP * IN_GROUP),
            scales + block * scales_per_row,
            cols,
            groups_per_scale,
            scales_per_row,
        )


@triton.jit
def piece_columns(pieces, columns, IN_GROUP: tl.constexpr, WIDTH: tl.constexpr):
    """Return the columns ``[C, W]`` of pieces, and which of them exist."""
    parts: tl.constexpr = (IN_GROUP + WIDTH - 1) // WIDTH  # pieces of one group
    inside = (pieces % parts)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    column = (pieces // parts)[:, None] * IN_GROUP + inside
    return column, (inside < IN_GROUP) & (column < columns)


@triton.jit
def codebook_tile(
    source,
    rows,
    pieces,
    num_rows,
    columns,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Return sums of codebook entries, ``[R, C, W]``; 0 outside of the weight."""
    codes, books, scales, cols, groups_per_scale, scales_per_row = source
    NUM_BOOKS: tl.constexpr = FORMAT[0]
    NUM_ENTRIES: tl.constexpr = FORMAT[1]
    OUT_GROUP: tl.constexpr = FORMAT[2]
    SCALED: tl.constexpr = FORMAT[3]
    PARTS: tl.constexpr = (IN_GROUP + WIDTH - 1) // WIDTH
    group = pieces // PARTS  # [C]
    block = (rows // OUT_GROUP).to(tl.int64)  # [R]; products with it exceed 32 bits
    inside = (pieces % PARTS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]  # [C, W]
    entry = (rows % OUT_GROUP)[:, None, None] * IN_GROUP + inside[None, :, :]  # [R, C, W]
    here = (rows < num_rows)[:, None] & (group < cols)[None, :]  # [R, C]
    exists = here[:, :, None] & (inside < IN_GROUP)[None, :, :]
    at = codes + (block * (cols * NUM_BOOKS))[:, None] + (group * NUM_BOOKS)[None, :]
    total = tl.zeros(exists.shape, dtype=tl.float32)
    for m in tl.static_range(NUM_BOOKS):
        code = tl.load(at + m, mask=here, other=0).to(tl.int32)  # [R, C]
        first = (m * NUM_ENTRIES + code) * (OUT_GROUP * IN_GROUP)
        total += tl.load(books + first[:, :, None] + entry, mask=exists, other=0.0).to(tl.float32)
    if SCALED:
        scale_at = (block * scales_per_row)[:, None] + (group // groups_per_scale)[None, :]
        scale = tl.load(scales + scale_at, mask=here, other=0.0).to(tl.float32)
        total = total * scale[:, :, None]
    return total


@triton.jit
def grid_tile(
    source,
    rows,
    pieces,
    num_rows,
    columns,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Return levels of a packed grid, ``[R, C, 8]``; 0 outside of the weight.

    8 codes of b bits are b bytes: each of these windows is read once.
    """
    packed, scales, zeros, row_bytes, columns_per_scale, scales_per_row = source
    BITS: tl.constexpr = FORMAT[0]
    HAS_ZEROS: tl.constexpr = FORMAT[1]
    SCALE_PER_PIECE: tl.constexpr = FORMAT[2]  # columns_per_scale is a multiple of 8
    SCALED: tl.constexpr = FORMAT[3]
    WINDOW: tl.constexpr = tl.int32 if BITS <= 4 else tl.int64
    MIDDLE: tl.constexpr = (1 << BITS) // 2
    row = rows.to(tl.int64)[:, None]  # [R, 1]
    first = pieces * BITS  # [C]
    present = (rows < num_rows)[:, None]
    window = tl.zeros([rows.shape[0], pieces.shape[0]], dtype=WINDOW)
    for b in tl.static_range(BITS):
        inside = present & (first + b < row_bytes)[None, :]
        byte = tl.load(packed + row * row_bytes + (first + b)[None, :], mask=inside, other=0)
        window |= byte.to(WINDOW) << (8 * b)
    place = tl.arange(0, 8)
    code = (window[:, :, None] >> (BITS * place).to(WINDOW)[None, None, :]) & ((1 << BITS) - 1)
    column = pieces[:, None] * 8 + place[None, :]  # [C, 8]
    exists = present[:, :, None] & (column < columns)[None, :, :]
    if SCALE_PER_PIECE:
        at = (row * scales_per_row + (pieces * 8 // columns_per_scale)[None, :])[:, :, None]
        mask = (present & (pieces * 8 < columns)[None, :])[:, :, None]  # [R, C, 1]
    else:
        at = row[:, :, None] * scales_per_row + (column // columns_per_scale)[None, :, :]
        mask = exists
    level = code.to(tl.float32)
    if HAS_ZEROS:
        level -= tl.load(zeros + at, mask=mask, other=0.0).to(tl.float32)
    else:
        level -= MIDDLE
    if SCALED:
        level *= tl.load(scales + at, mask=mask, other=0.0).to(tl.float32)
    return tl.where(exists, level, 0.0)
