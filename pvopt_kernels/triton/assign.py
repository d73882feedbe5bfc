"""The nearest codebook entries of each group: tiles of groups against tiles of entries.

A program keeps the ``k`` best entries of each of its groups while it walks over a slice of the
codebook. A tile of scores |c|^2 - 2 t.c costs one product and one minimum per group; only where
that minimum beats the worst entry kept (rarely, after the first tiles) is the entry looked for and
put in. At the end the errors of the entries kept are computed again, without cancellation.
"""

# Inside kernels pyright sees constexpr where there are tensors.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from ._compile_spec import CompileSpec
from ._launch import launch, least_columns

__all__ = ["assign", "compile_specs", "nearest"]


@triton.jit
def assign_kernel(
    target,  # [W n, g]
    codebook,  # [W, K, g]
    metric,  # [W n, g] or None
    codes,  # [W n, splits * k]
    errors,  # [W n, splits * k]
    n,
    entries,
    slice_size,  # entries of one program, a multiple of BLOCK_K
    target_row,  # strides
    target_column,
    codebook_weight,
    codebook_row,
    codebook_column,
    metric_row,
    metric_column,
    G: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of one product: a power of 2
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BEST: tl.constexpr,  # k
    SLOTS: tl.constexpr,  # the next power of 2
    HALF: tl.constexpr,  # products of 16-bit operands, on tensor cores
):
    w = tl.program_id(2).to(tl.int64)
    codebook += w * codebook_weight
    rows = w * n + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < w * n + n
    first = tl.program_id(1) * slice_size
    last = tl.minimum(first + slice_size, entries)
    slot = tl.arange(0, SLOTS)[None, :]
    # Slots that are only there to make a power of 2 are better than anything, so they stay. The
    # others begin with a valid code, which a target that is NaN or infinite keeps.
    kept = tl.where(slot < BEST, float("inf"), float("-inf")) + tl.zeros(
        (BLOCK_N, SLOTS), tl.float32
    )
    kept_code = tl.minimum(first + slot, entries - 1) + tl.zeros((BLOCK_N, SLOTS), tl.int32)
    worst = tl.full((BLOCK_N,), float("inf"), tl.float32)
    for start in range(first, last, BLOCK_K):
        entry = start + tl.arange(0, BLOCK_K)
        score = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for offset in range(0, G, WIDTH):
            column = offset + tl.arange(0, WIDTH)
            row_mask = inside[:, None] & (column < G)[None, :]
            t = tl.load(
                target + rows[:, None] * target_row + column[None, :] * target_column,
                mask=row_mask,
                other=0.0,
            )
            c = tl.load(
                codebook + entry[None, :] * codebook_row + column[:, None] * codebook_column,
                mask=(entry < last)[None, :] & (column < G)[:, None],
                other=0.0,
            )  # [WIDTH, BLOCK_K]
            c_exact = c.to(tl.float32)
            if metric is None:
                if HALF:
                    score -= 2.0 * tl.dot(t, c)
                else:
                    score = tl.dot(-2.0 * t.to(tl.float32), c_exact, score, input_precision="ieee")
                score += tl.sum(c_exact * c_exact, axis=0)[None, :]
            else:
                d = tl.load(
                    metric + rows[:, None] * metric_row + column[None, :] * metric_column,
                    mask=row_mask,
                    other=0.0,
                ).to(tl.float32)
                left = -2.0 * d * t.to(tl.float32)
                score = tl.dot(left, c_exact, score, input_precision="ieee")
                score = tl.dot(d, c_exact * c_exact, score, input_precision="ieee")
        score = tl.where((entry < last)[None, :], score, float("inf"))
        best = tl.min(score, axis=1)  # [BLOCK_N]
        # Entries come in order, so one that equals the worst entry kept has a higher number.
        while tl.max((best < worst).to(tl.int32), axis=0) > 0:
            better = best < worst
            found = tl.min(tl.where(score == best[:, None], entry[None, :], entries), axis=1)
            # Of several worst entries the one with the highest number leaves.
            bad = kept == worst[:, None]
            leaving = tl.max(tl.where(bad, kept_code, -1), axis=1)
            replaced = bad & (kept_code == leaving[:, None]) & better[:, None]
            kept = tl.where(replaced, best[:, None], kept)
            kept_code = tl.where(replaced, found[:, None], kept_code)
            worst = tl.max(kept, axis=1)
            score = tl.where(entry[None, :] == found[:, None], float("inf"), score)
            best = tl.min(score, axis=1)
    real = inside[:, None] & (slot < BEST)
    error = tl.zeros((BLOCK_N, SLOTS), tl.float32)
    for i in range(G):
        t = tl.load(target + rows * target_row + i * target_column, mask=inside, other=0.0)
        c = tl.load(
            codebook + kept_code.to(tl.int64) * codebook_row + i * codebook_column,
            mask=real,
            other=0.0,
        )
        difference = t.to(tl.float32)[:, None] - c.to(tl.float32)
        if metric is None:
            error += difference * difference
        else:
            d = tl.load(metric + rows * metric_row + i * metric_column, mask=inside, other=0.0)
            error += d.to(tl.float32)[:, None] * difference * difference
    # A slot that was never filled repeats an entry, unless the target is NaN and nothing compares.
    error = tl.where((kept == float("inf")) & (error == error), float("inf"), error)
    # Place of a slot: how many are nearer, or as near with a lower number. NaN counts as infinite.
    key = tl.where(error == error, error, float("inf"))
    place = tl.zeros((BLOCK_N, SLOTS), tl.int32)
    for j in range(BEST):
        other = tl.sum(tl.where(slot == j, key, 0.0), axis=1)[:, None]
        other_code = tl.sum(tl.where(slot == j, kept_code, 0), axis=1)[:, None]
        lower = (other_code < kept_code) | ((other_code == kept_code) & (j < slot))
        place += ((other < key) | ((other == key) & lower)).to(tl.int32)
    width = tl.num_programs(1) * BEST
    out = rows[:, None] * width + tl.program_id(1) * BEST + place
    tl.store(codes + out, kept_code.to(tl.int64), mask=real)
    tl.store(errors + out, error, mask=real)


# Counted in the code for sm_90, instructions of the inner loop per multiply-add of the product, and
# registers: 64 x 64 scores with 4 warps 2.0 and 128, 64 x 128 2.1 and 167, 128 x 64 2.0 and 230,
# 32 x 64 2.3 and 94. With two products (metric) or more columns 8 warps, 1.6 and 138: 4 take 254.
_BLOCK_N = 64
_BLOCK_K = 64
# A few groups against a large codebook: two programs for each of the 132 multiprocessors of an
# H100, but no slice below 1024 entries, where the first tiles (which replace most) weigh in.
_PROGRAMS = 264
_SLICE = 1024
_MAX_BEST = 1024


def _blocks(g: int, k: int, half: bool) -> dict[str, int]:
    """Return the constants: 8 columns (16 of 16 bits), or the least that a product takes."""
    slots = triton.next_power_of_2(k)
    return {
        "G": g,
        "WIDTH": 16 if half or 8 < g <= 16 else least_columns(),
        "BLOCK_N": max(8, min(_BLOCK_N, 512 // slots)),
        "BLOCK_K": _BLOCK_K,
        "BEST": k,
        "SLOTS": slots,
        "HALF": half,
    }


def _warps(blocks: dict[str, int], metric: bool) -> int:
    if blocks["SLOTS"] > 16:
        return 4  # few rows
    wide = blocks["WIDTH"] > 8 and not blocks["HALF"]
    return 8 if metric or wide else 4


def _slice_size(tiles: int, entries: int) -> int:
    """Return how many entries one program looks at."""
    splits = min(triton.cdiv(_PROGRAMS, max(tiles, 1)), triton.cdiv(entries, _SLICE))
    return triton.cdiv(triton.cdiv(entries, splits), _BLOCK_K) * _BLOCK_K


def assign(
    target: Tensor, codebook: Tensor, k: int, *, metric: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes and errors, ``[n, k]`` each; see :func:`pvopt_kernels.assign`."""
    return nearest(target, codebook[None], k, metric=metric)


def nearest(
    target: Tensor, codebook: Tensor, k: int, *, metric: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do what :func:`assign` does for a stack of codebooks.

    Args:
        target: ``[W * n, g]``, weight after weight.
        codebook: ``[W, K, g]``.
        k: entries wanted.
        metric: ``[W * n, g]`` or None.

    Returns:
        Codes and errors, ``[W * n, k]`` each; the same bits as of a search for each weight.
    """
    if k > _MAX_BEST:
        raise ValueError(
            f"the Triton kernel finds at most {_MAX_BEST} entries, got k={k}; "
            f"PVOPT_KERNELS=reference has no limit"
        )
    total, g = target.shape
    weights, entries, _ = codebook.shape
    n = total // max(1, weights)
    half = metric is None and target.dtype == codebook.dtype and target.dtype.itemsize == 2
    if target.dtype == torch.bfloat16 and knobs.runtime.interpret:
        half = False  # the interpreter multiplies the raw bits
    blocks = _blocks(g, k, half)
    tiles = triton.cdiv(n, blocks["BLOCK_N"])
    slice_size = _slice_size(tiles, entries)
    splits = triton.cdiv(entries, slice_size)
    codes = torch.empty(total, splits * k, dtype=torch.int64, device=target.device)
    errors = torch.empty(total, splits * k, dtype=torch.float32, device=target.device)
    launch(
        assign_kernel,
        (tiles, splits, weights),
        target.device,
        target,
        codebook,
        metric,
        codes,
        errors,
        n,
        entries,
        slice_size,
        *target.stride(),
        *codebook.stride(),
        *((0, 0) if metric is None else metric.stride()),
        **blocks,
        num_warps=_warps(blocks, metric is not None),
    )
    if splits == 1:
        return codes, errors
    # The best of all slices. Slices are in the order of their entries, and so are equal errors
    # within a slice: a stable sort keeps the lowest numbers first.
    errors, order = errors.sort(dim=1, stable=True)
    return codes.gather(1, order[:, :k]), errors[:, :k].contiguous()


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    variants = [  # dtype, g, k, metric
        ("fp32", 8, 1, False),
        ("fp32", 8, 5, True),
        ("fp32", 16, 2, False),
        ("fp32", 8, 64, True),
        ("fp32", 128, 1, True),
        ("bf16", 8, 1, False),
    ]
    specs = []
    for dtype, g, k, metric in variants:
        signature: dict[str, Any] = {"target": f"*{dtype}", "codebook": f"*{dtype}"}
        signature |= {"codes": "*i64", "errors": "*fp32"}
        signature |= dict.fromkeys(("n", "entries", "slice_size"), "i32")
        signature |= {"target_row": "i32", "codebook_weight": "i32", "codebook_row": "i32"}
        # Columns of a contiguous tensor have stride 1, which Triton takes for a constant.
        constants: dict[str, Any] = {"target_column": 1, "codebook_column": 1}
        if metric:
            signature |= {"metric": f"*{dtype}", "metric_row": "i32"}
            constants |= {"metric_column": 1}
        else:
            constants |= {"metric": None, "metric_row": 0, "metric_column": 0}
        blocks = _blocks(g, k, dtype != "fp32" and not metric)
        label = f"{dtype} g={g} k={k}{' metric' if metric else ''}"
        specs.append(
            CompileSpec(assign_kernel, signature, constants | blocks, label, _warps(blocks, metric))
        )
    return specs
