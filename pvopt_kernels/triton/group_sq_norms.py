"""Squared norms of the groups of a difference: one pass, each program reduces a tile of groups."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._compile_spec import CompileSpec
from ._launch import launch

__all__ = ["compile_specs", "group_sq_norms"]

# Weights of one program: 16 (fp32) to 32 KiB of reads in flight hide the latency of memory.
_TILE = 2048
_WARPS = 4


@triton.jit
def group_sq_norms_kernel(
    target,
    weight,
    out,
    block_columns,  # groups of a block row
    groups,
    target_row,  # strides
    target_column,
    weight_row,
    weight_column,
    OUT_GROUP: tl.constexpr,
    IN_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,  # groups of a program
    WIDTH: tl.constexpr,  # columns read at once, a power of 2
):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    row = group // block_columns * OUT_GROUP
    column = group % block_columns * IN_GROUP
    inside = group < groups
    total = tl.zeros((GROUPS, WIDTH), tl.float32)
    for step in range(OUT_GROUP * tl.cdiv(IN_GROUP, WIDTH)):
        i = step // tl.cdiv(IN_GROUP, WIDTH)
        j = step % tl.cdiv(IN_GROUP, WIDTH) * WIDTH + tl.arange(0, WIDTH)
        mask = inside[:, None] & (j < IN_GROUP)[None, :]
        r = (row + i)[:, None]
        c = column[:, None] + j[None, :]
        t = tl.load(target + r * target_row + c * target_column, mask=mask, other=0.0)
        w = tl.load(weight + r * weight_row + c * weight_column, mask=mask, other=0.0)
        difference = t.to(tl.float32) - w.to(tl.float32)
        total += difference * difference
    tl.store(out + group, tl.sum(total, axis=1), mask=inside)


def _blocks(out_group: int, in_group: int) -> dict[str, int]:
    width = min(triton.next_power_of_2(in_group), _TILE)
    return {
        "OUT_GROUP": out_group,
        "IN_GROUP": in_group,
        "GROUPS": _TILE // width,
        "WIDTH": width,
    }


def group_sq_norms(target: Tensor, weight: Tensor, out_group: int, in_group: int) -> Tensor:
    """Return ``[groups]`` squared norms; see :func:`pvopt_kernels.group_sq_norms`."""
    rows, columns = weight.shape
    block_columns = columns // in_group
    groups = rows // out_group * block_columns
    out = torch.empty(groups, dtype=torch.float32, device=weight.device)
    blocks = _blocks(out_group, in_group)
    launch(
        group_sq_norms_kernel,
        (triton.cdiv(groups, blocks["GROUPS"]),),
        weight.device,
        target,
        weight,
        out,
        block_columns,
        groups,
        *target.stride(),
        *weight.stride(),
        **blocks,
        num_warps=_WARPS,
    )
    return out


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    shapes = [(1, 8), (8, 8), (1, 1), (1, 11008), (3, 5)]
    variants: list[tuple[str, int, int]] = [("fp32", *shape) for shape in shapes]
    variants += [("bf16", 1, 8)]
    specs = []
    for dtype, out_group, in_group in variants:
        signature: dict[str, Any] = {"target": f"*{dtype}", "weight": f"*{dtype}", "out": "*fp32"}
        signature |= dict.fromkeys(("block_columns", "groups", "target_row", "weight_row"), "i32")
        # Columns of a contiguous tensor have stride 1, which Triton takes for a constant.
        constants = _blocks(out_group, in_group) | {"target_column": 1, "weight_column": 1}
        label = f"{dtype} {out_group}x{in_group}"
        specs.append(
            CompileSpec(group_sq_norms_kernel, signature, constants, label, num_warps=_WARPS)
        )
    return specs
