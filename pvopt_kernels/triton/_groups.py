"""Groups of listed weights by their numbers: one kernel reads them or writes them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._compile_spec import CompileSpec
from ._launch import launch
from ._lists import Listed, kind_of
from ._tiles import dense_of

__all__ = ["groups_specs", "move_groups"]

# Weights of one program.
_TILE = 1024
_WARPS = 4


@triton.jit
def groups_kernel(
    dense,
    groups,  # [W, wanted]
    rows,  # [W, wanted, OUT_GROUP * IN_GROUP]
    wanted,
    cols,
    KIND: tl.constexpr,
    WRITES: tl.constexpr,
    OUT_GROUP: tl.constexpr,
    IN_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,  # groups of a program
    WIDTH: tl.constexpr,  # entries of a group moved at once, a power of 2
):
    SIZE: tl.constexpr = OUT_GROUP * IN_GROUP
    w = tl.program_id(1).to(tl.int64)
    weight = dense_of(dense, w, KIND)
    number = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    inside = number < wanted
    number = w * wanted + number
    group = tl.load(groups + number, mask=inside, other=0)  # 64 bits
    block, col = group // cols, group % cols
    for first in range(0, SIZE, WIDTH):
        entry = first + tl.arange(0, WIDTH)
        mask = inside[:, None] & (entry < SIZE)[None, :]
        row = (block * OUT_GROUP)[:, None] + (entry // IN_GROUP)[None, :]
        column = (col * IN_GROUP)[:, None] + (entry % IN_GROUP)[None, :]
        at = weight + row * (cols * IN_GROUP) + column
        place = rows + number[:, None] * SIZE + entry[None, :]
        if WRITES:
            values = tl.load(place, mask=mask, other=0.0).to(tl.float32)
            tl.store(at, values.to(weight.dtype.element_ty), mask=mask)
        else:
            tl.store(place, tl.load(at, mask=mask, other=0.0).to(tl.float32), mask=mask)


def _blocks(out_group: int, in_group: int) -> dict[str, int]:
    width = min(triton.next_power_of_2(out_group * in_group), _TILE)
    return {
        "OUT_GROUP": out_group,
        "IN_GROUP": in_group,
        "GROUPS": _TILE // width,
        "WIDTH": width,
    }


def move_groups(
    dense: Listed, groups: Tensor, rows: Tensor, out_group: int, in_group: int, *, writes: bool
) -> None:
    """Read groups of listed weights into ``rows``, or write them from there; all contiguous."""
    wanted = groups.shape[1]
    cols = dense.tensors[0].shape[1] // in_group
    blocks = _blocks(out_group, in_group)
    grid = triton.cdiv(wanted, blocks["GROUPS"]), len(groups)
    arguments = dense.addresses, groups, rows, wanted, cols, dense.kind, writes
    launch(groups_kernel, grid, groups.device, *arguments, **blocks, num_warps=_WARPS)


def groups_specs(*, writes: bool) -> list[CompileSpec]:
    """Return the variants of the kernel that reads, or of the one that writes."""
    specs = []
    for dtype, out_group, in_group in (("fp32", 1, 8), ("bf16", 1, 8), ("fp32", 3, 5)):
        signature = {"dense": "*i64", "groups": "*i64", "rows": "*fp32"}
        constants = _blocks(out_group, in_group) | {"KIND": kind_of(dtype), "WRITES": writes}
        types = signature | {"wanted": "i32", "cols": "i32"}
        label = f"{dtype} {out_group}x{in_group}{' writes' if writes else ''}"
        specs.append(CompileSpec(groups_kernel, types, constants, label, num_warps=_WARPS))
    return specs
