"""Gradients of codebooks and scales without atomic operations.

Groups are sorted by code, stably; each entry's groups are then a run of the sorted list. A run is
cut into a fixed number of parts, a program adds up a part, and the parts are added in order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._launch import launch
from ._lists import kind_of
from ._tiles import dense_of
from ._value_sums import value_sums, value_sums_specs
from ._weights import codebook_weight, unsigned

__all__ = ["codebook_grad", "compile_specs", "segment_specs", "segment_sums"]

# Groups of one step of a program: 64 rows of 8 numbers give each of 128 threads four.
_BLOCK = 64
_WARPS = 4
# A part has about so many groups: 1.4 million groups of 256 entries (2x8g8, 4096 x 2752) make
# 6 parts of each run, 1500 programs; with 65536 entries no run is cut.
_PART = 1024
_MAX_PARTS = 64
_MAX_WIDTH = 64  # entries of a group that a program holds


@triton.jit
def segment_kernel(
    gradient,
    order,
    starts,
    scales,
    out,
    groups,
    num_entries,
    num_parts,
    num_books,
    cols,
    groups_per_scale,
    scales_per_row,
    scales_per_weight,
    KIND: tl.constexpr,
    OUT_GROUP: tl.constexpr,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up ``scale * gradient`` over a part of the run of an entry of a book of a weight."""
    size: tl.constexpr = OUT_GROUP * IN_GROUP
    entry = tl.program_id(0) // num_parts
    part = tl.program_id(0) % num_parts
    book = tl.program_id(1).to(tl.int64)  # of all weights
    w = book // num_books
    gradient = dense_of(gradient, w, KIND)
    scales += w * scales_per_weight
    inside = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)  # [W]
    run = starts + book * (num_entries + 1) + entry
    low = tl.load(run)
    high = tl.load(run + 1)
    length = tl.cdiv(high - low, num_parts)
    first = low + part * length
    last = tl.minimum(first + length, high)
    row_in, column_in = inside // IN_GROUP, inside % IN_GROUP
    total = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
    for start in range(first, last, BLOCK):
        place = start + tl.arange(0, BLOCK)
        here = place < last
        group = tl.load(order + book * groups + place, mask=here, other=0)  # [B], 64 bits
        block, col = group // cols, group % cols
        scale_at = block * scales_per_row + col // groups_per_scale
        scale = tl.load(scales + scale_at, mask=here, other=0.0).to(tl.float32)
        row = (block * OUT_GROUP)[:, None] + row_in[None, :]
        at = row * (cols * IN_GROUP) + (col * IN_GROUP)[:, None] + column_in[None, :]
        mask = here[:, None] & (inside < size)[None, :]
        slope = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
        total += slope * scale[:, None]
    at = ((part * tl.num_programs(1) + book) * num_entries + entry) * size + inside
    tl.store(out + at, tl.sum(total, 0), mask=inside < size)


def codebook_grad(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return both gradients in float32; see :func:`pvopt_kernels.codebook_grad`."""
    gradient = gradient.contiguous()
    bare = codebook_weight(codes, codebooks, scales, out_group, scaled=False)
    of_scales, _ = value_sums(gradient, bare, out_group)
    of_books = segment_sums(gradient, codes[None], codebooks[None], scales[None], out_group, None)
    return of_books[0], of_scales


def segment_sums(
    gradient: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    kind: Any,
) -> Tensor:
    """Return the gradients of the codebooks of a stack.

    Args:
        gradient: the dense gradient of the only weight, or the addresses of those of all.
        codes: ``[W, rows, cols, M]``.
        codebooks: ``[W, M, K, g]``.
        scales: ``[W, rows, S]``.
        out_group: rows of a group.
        kind: see ``_tiles.dense_of``.

    Returns:
        ``[W, M, K, g]`` float32.
    """
    weights, rows, cols, books = codes.shape
    groups = rows * cols
    entries, size = codebooks.shape[2:]
    flat = unsigned(codes).view(weights, groups, books).mT.to(torch.int32)
    flat = flat.reshape(weights * books, groups).contiguous()
    ordered, order = flat.sort(dim=1, stable=True)
    edges = torch.arange(entries + 1, dtype=torch.int32, device=codes.device)
    starts = torch.searchsorted(ordered, edges.expand(len(flat), -1).contiguous())  # [W M, K + 1]
    parts = max(1, min(_MAX_PARTS, groups // (entries * _PART)))
    shape = (parts, weights, books, entries, size)
    out = torch.empty(shape, dtype=torch.float32, device=codes.device)
    width = min(triton.next_power_of_2(size), _MAX_WIDTH)
    row_scales = scales.shape[2]
    launch(
        segment_kernel,
        (entries * parts, weights * books, triton.cdiv(size, width)),
        codes.device,
        gradient,
        order,
        starts,
        scales.contiguous(),
        out,
        groups,
        entries,
        parts,
        books,
        cols,
        cols // max(1, row_scales),
        row_scales,
        rows * row_scales,
        KIND=kind,
        OUT_GROUP=out_group,
        IN_GROUP=size // out_group,
        WIDTH=width,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return out[0] if parts == 1 else out.sum(0)


def segment_specs(*, stacked: bool = False) -> list[CompileSpec]:
    """Return the variants of ``segment_kernel``."""
    specs = []
    for dtype, out_group, in_group in (("fp32", 1, 8), ("bf16", 1, 8), ("fp32", 4, 32)):
        signature = {"gradient": "*i64" if stacked else f"*{dtype}", "order": "*i64"}
        signature |= {"starts": "*i64", "scales": f"*{dtype}", "out": "*fp32"}
        sizes = ("groups", "num_entries", "num_parts", "num_books", "cols", "groups_per_scale")
        sizes += ("scales_per_row", "scales_per_weight")
        constants = {
            "KIND": kind_of(dtype) if stacked else None,
            "OUT_GROUP": out_group,
            "IN_GROUP": in_group,
            "WIDTH": min(triton.next_power_of_2(out_group * in_group), _MAX_WIDTH),
            "BLOCK": _BLOCK,
        }
        types = signature | dict.fromkeys(sizes, "i32")
        label = f"{dtype} {out_group}x{in_group}"
        specs.append(CompileSpec(segment_kernel, types, constants, label, num_warps=_WARPS))
    return specs


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.codebooks
    specs = value_sums_specs(
        {
            "fp32 2x8g8": ("fp32", of("fp32", 2, 256, 8, scaled=False)),
            "bf16 1x16g8": ("bf16", of("bf16", 1, 65536, 8, scaled=False)),
            "fp32 4x8g100": ("fp32", of("fp32", 4, 256, 100, scaled=False)),
        }
    )
    return specs + segment_specs()
