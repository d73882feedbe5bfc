"""Squared norms between targets and a stack of weights: every program decodes a tile of groups."""

# Inside kernels pyright sees constexpr where there are numbers.
# pyright: reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._launch import launch
from ._lists import kind_of, listed
from ._tiles import dense_of, piece_columns, source_of
from ._weights import codebook_weight

__all__ = ["compile_specs", "decoded_sq_norms"]

# Weights of one step of a program, as in `decode`.
_TILE = 2048
_ROWS = 4
_WARPS = 4


@triton.jit
def decoded_sq_norms_kernel(
    targets,
    changes,  # [W, blocks * cols]
    norms,  # [W, programs of a weight]
    source,
    num_rows,
    columns,
    cols,
    KIND: tl.constexpr,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    TILE: tl.constexpr,
    OUT_GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Reduce the groups of ``BLOCK_R`` block rows and ``BLOCK_C`` block columns of a weight."""
    PARTS: tl.constexpr = (IN_GROUP + WIDTH - 1) // WIDTH
    w = tl.program_id(2).to(tl.int64)
    target = dense_of(targets, w, KIND)
    source = source_of(source, w, num_rows, IN_GROUP, FORMAT, KIND)
    blocks = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    groups = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    change = tl.zeros([BLOCK_R, BLOCK_C, WIDTH], dtype=tl.float32)
    square = tl.zeros([BLOCK_R, BLOCK_C, WIDTH], dtype=tl.float32)
    for step in range(OUT_GROUP * PARTS):
        rows = blocks * OUT_GROUP + step // PARTS
        pieces = groups * PARTS + step % PARTS
        weight = TILE(source, rows, pieces, num_rows, columns, IN_GROUP, WIDTH, FORMAT)
        column, exists = piece_columns(pieces, columns, IN_GROUP, WIDTH)
        at = rows.to(tl.int64)[:, None, None] * columns + column[None, :, :]
        mask = (rows < num_rows)[:, None, None] & exists[None, :, :]
        difference = tl.load(target + at, mask=mask, other=0.0).to(tl.float32) - weight
        change += difference * difference
        square += weight * weight
    num_blocks = num_rows // OUT_GROUP
    here = (blocks < num_blocks)[:, None] & (groups < cols)[None, :]
    place = (w * num_blocks + blocks)[:, None] * cols + groups[None, :]
    tl.store(changes + place, tl.sum(change, 2), mask=here)
    program = (w * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
    tl.store(norms + program, tl.sum(square))


def _blocks(width: int, out_group: int) -> dict[str, int]:
    return {"OUT_GROUP": out_group, "BLOCK_R": _ROWS, "BLOCK_C": _TILE // _ROWS // width}


def decoded_sq_norms(
    targets: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return changes and norms; see :func:`pvopt_kernels.decoded_sq_norms`."""
    weights, rows, cols, _ = codes.shape
    device = codes.device
    whole = codebook_weight(codes, codebooks, scales, out_group)
    blocks = _blocks(whole.constants["WIDTH"], out_group)
    grid = triton.cdiv(rows, _ROWS), triton.cdiv(cols, blocks["BLOCK_C"])
    changes = torch.empty(weights, rows * cols, dtype=torch.float32, device=device)
    of_programs = torch.empty(weights, grid[0] * grid[1], dtype=torch.float32, device=device)
    for dense in listed(targets):
        part = dense.part
        weight = codebook_weight(codes[part], codebooks[part], scales[part], out_group)
        launch(
            decoded_sq_norms_kernel,
            (*grid, len(dense.tensors)),
            device,
            dense.addresses,
            changes[part],
            of_programs[part],
            weight.source,
            weight.rows,
            weight.columns,
            cols,
            dense.kind,
            **weight.constants,
            **blocks,
            num_warps=_WARPS,
        )
    return changes, of_programs.sum(1)


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.codebooks
    variants = [  # target, out_group, source and constants
        ("fp32", "fp32 2x8g8", 1, of("fp32", 2, 256, 8)),
        ("bf16", "bf16 of fp32 2x8g8", 1, of("fp32", 2, 256, 8)),
        ("fp32", "fp32 1x16g16o4", 4, of("fp32", 1, 65536, 4, out_group=4)),
        ("fp32", "fp32 2x8g100", 1, of("fp32", 2, 256, 100)),
    ]
    specs = []
    for dtype, label, out_group, (source, constants) in variants:
        signature = {"targets": "*i64", "changes": "*fp32", "norms": "*fp32", "source": source}
        signature |= dict.fromkeys(("num_rows", "columns", "cols"), "i32")
        constants = constants | {"KIND": kind_of(dtype)} | _blocks(constants["WIDTH"], out_group)
        specs.append(
            CompileSpec(decoded_sq_norms_kernel, signature, constants, label, num_warps=_WARPS)
        )
    return specs
