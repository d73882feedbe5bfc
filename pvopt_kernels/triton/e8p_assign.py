# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
"""Nearest points of E8P: each program compares 2 x 256 errors at the best signs for its groups."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvopt_kernels.e8p_tables import NUM_EVEN
from pvopt_kernels.reference.e8p_assign import e8p_assign as reference

from ._compile_spec import CompileSpec
from ._e8p import absolute_table
from ._launch import launch

__all__ = ["compile_specs", "e8p_assign"]

# Groups of a program: errors and flips of 4 x 256 pairs are 16 registers of each of 128 threads.
# With 8 groups and a metric the kernel takes 253 registers on sm_80 and spills 93 on gfx942.
_GROUPS = 4
_WARPS = 4


@triton.jit
def e8p_assign_kernel(
    target,
    metric,
    table,
    codes,
    groups,
    WEIGHTED: tl.constexpr,
    NUM_EVEN: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Write vector and sign bytes of the nearest point of each group."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    here = group < groups
    vector = tl.arange(0, 256)
    place = tl.arange(0, 8)[None, :]
    at = group[:, None] * 8 + place
    goal = tl.load(target + at, mask=here[:, None], other=0.0).to(tl.float32)  # [G, 8]
    weight = tl.zeros([GROUPS, 8], dtype=tl.float32) + 1.0
    if WEIGHTED:
        weight = tl.load(metric + at, mask=here[:, None], other=0.0).to(tl.float32)
    least = tl.full([GROUPS], float("inf"), dtype=tl.float32)
    best = tl.zeros([GROUPS], dtype=tl.int32)
    best_shift = tl.zeros([GROUPS], dtype=tl.int32)
    for shift in tl.static_range(2):
        offset = 0.5 * shift - 0.25
        error = tl.zeros([GROUPS, 256], dtype=tl.float32)
        flip = tl.full([GROUPS, 256], float("inf"), dtype=tl.float32)
        for i in tl.static_range(8):
            t = tl.load(target + group * 8 + i, mask=here, other=0.0).to(tl.float32)
            size = tl.abs(t - offset)
            d = tl.full([GROUPS], 1.0, dtype=tl.float32)
            if WEIGHTED:
                d = tl.load(metric + group * 8 + i, mask=here, other=0.0).to(tl.float32)
            a = tl.load(table + vector * 8 + i)  # [256]
            difference = size[:, None] - a[None, :]
            error += d[:, None] * difference * difference
            flip = tl.minimum(flip, (d * size)[:, None] * a[None, :])
        minuses = tl.sum((goal < offset).to(tl.int32), 1)  # [G]
        odd = (vector >= NUM_EVEN).to(tl.int32)
        wrong = ((minuses[:, None] + odd[None, :]) & 1) == 1
        error += tl.where(wrong, 4 * flip, 0.0)  # (x + a)^2 - (x - a)^2 = 4 x a
        found, index = tl.min(error, 1, return_indices=True)
        better = found < least
        least = tl.where(better, found, least)
        best = tl.where(better, index.to(tl.int32), best)
        best_shift = tl.where(better, shift, best_shift)
    gap = goal - (best_shift.to(tl.float32) * 0.5 - 0.25)[:, None]
    size = tl.load(table + best[:, None] * 8 + place)
    minus = (gap < 0).to(tl.int32)
    wrong = (tl.sum(minus, 1) + (best >= NUM_EVEN).to(tl.int32)) & 1
    _, cheapest = tl.min(weight * tl.abs(gap) * size, 1, return_indices=True)
    minus ^= (place == cheapest[:, None]).to(tl.int32) & wrong[:, None]
    sign = tl.sum(tl.where(place < 7, minus << place, 0), 1) + (best_shift << 7)
    tl.store(codes + group * 2, best.to(tl.int64), mask=here)
    tl.store(codes + group * 2 + 1, sign.to(tl.int64), mask=here)


def e8p_assign(target: Tensor, k: int, *, metric: Tensor | None) -> Tensor:
    """Return the codes of the nearest points, ``[n, k, 2]``; see :func:`pvopt_kernels.e8p_assign`.

    One point comes from the kernel, several from the reference: they are asked for by stochastic
    rounding and by the beam of the 3 and 4 bit codes.
    """
    if k > 1:
        return reference(target, k, metric=metric)
    codes = torch.empty(len(target), 1, 2, dtype=torch.int64, device=target.device)
    target = target.contiguous()
    launch(
        e8p_assign_kernel,
        (triton.cdiv(len(target), _GROUPS),),
        target.device,
        target,
        target if metric is None else metric.contiguous(),  # not read if None
        absolute_table(target.device),
        codes,
        len(target),
        WEIGHTED=metric is not None,
        NUM_EVEN=NUM_EVEN,
        GROUPS=_GROUPS,
        num_warps=_WARPS,
    )
    return codes


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    specs = []
    for dtype, weighted in (("fp32", False), ("fp32", True), ("bf16", True)):
        signature = {"target": f"*{dtype}", "metric": f"*{dtype}", "table": "*fp32"}
        signature |= {"codes": "*i64", "groups": "i32"}
        constants = {"WEIGHTED": weighted, "NUM_EVEN": NUM_EVEN, "GROUPS": _GROUPS}
        label = f"{dtype}{' metric' if weighted else ''}"
        specs.append(CompileSpec(e8p_assign_kernel, signature, constants, label, num_warps=_WARPS))
    return specs
