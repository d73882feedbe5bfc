"""Beam search: the first codebook by the kernel of `assign`, the others by one fused kernel.

With a single beam the first visit is a search of nearest entries. Afterwards a program holds the
beams of a few groups as rows of a tile. At each visit it scores all entries for all its rows by one
product, keeps the best combinations of each group as `assign` does, and reads the codes of their
parents within the tile. Nothing is written before the end.
"""

# Inside kernels pyright sees constexpr where there are tensors.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._compile_spec import CompileSpec
from ._launch import launch, least_columns
from .assign import nearest

__all__ = ["beam_search", "compile_specs"]

_ORDER_BITS = 4  # of a codebook's number in the packed order


@triton.jit
def _residual(
    target,
    codebooks,
    beams,  # [BLOCK_N, SLOTS, BOOKS_WIDTH] codes
    group,  # [BLOCK_N * SLOTS]
    column,  # [WIDTH]
    mask,  # [BLOCK_N * SLOTS, WIDTH]
    left_out,  # the codebook that is not subtracted, or -1
    target_row,
    target_column,
    book_stride,
    entry_stride,
    book_column,
    BOOKS: tl.constexpr,
    BOOKS_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Return the target minus the sum of the other codebooks' entries, ``[ROWS, WIDTH]``."""
    residual = tl.load(
        target + group[:, None] * target_row + column[None, :] * target_column,
        mask=mask,
        other=0.0,
    ).to(tl.float32)
    book = tl.arange(0, BOOKS_WIDTH)[None, None, :]
    for j in range(BOOKS):
        code = tl.reshape(tl.sum(tl.where(book == j, beams, 0), axis=2), (ROWS,)).to(tl.int64)
        entry = tl.load(
            codebooks
            + j * book_stride
            + code[:, None] * entry_stride
            + column[None, :] * book_column,
            mask=mask & (tl.full((1, 1), j, tl.int32) != left_out),
            other=0.0,
        )
        residual -= entry.to(tl.float32)
    return residual


@triton.jit
def beam_search_kernel(
    target,  # [W n, g]
    codebooks,  # [W, M, K, g]
    metric,  # [W n, g] or None
    start,  # [W n, START, M] int64: the beams of the first visit
    out,  # [W n, BEST, M] int64
    n,
    entries,  # K
    visits,  # how many codebooks are visited
    order,  # their numbers, 4 bits each, the first in the lowest
    target_row,  # strides
    target_column,
    weight_stride,
    book_stride,
    entry_stride,
    book_column,
    metric_row,
    metric_column,
    G: tl.constexpr,
    WIDTH: tl.constexpr,  # the next power of 2, at least 8
    BOOKS: tl.constexpr,  # M
    BOOKS_WIDTH: tl.constexpr,  # the next power of 2
    START: tl.constexpr,
    BEAMS: tl.constexpr,
    SLOTS: tl.constexpr,  # the next power of 2
    BEST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK_N * SLOTS
    w = tl.program_id(1).to(tl.int64)
    codebooks += w * weight_stride
    first = (tl.program_id(1) * n + tl.program_id(0) * BLOCK_N).to(tl.int64)
    rest = n - tl.program_id(0) * BLOCK_N  # groups of the weight from there on
    groups = first + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    inside = tl.arange(0, BLOCK_N) < rest
    slot = tl.arange(0, SLOTS)[None, :]  # [1, SLOTS]
    book = tl.arange(0, BOOKS_WIDTH)[None, None, :]
    group = first + tl.arange(0, ROWS) // SLOTS  # [ROWS]
    column = tl.arange(0, WIDTH)
    mask = (tl.arange(0, ROWS) // SLOTS < rest)[:, None] & (column < G)[None, :]
    weight = tl.full((ROWS, WIDTH), 1.0, tl.float32)
    if metric is not None:
        weight = tl.load(
            metric + group[:, None] * metric_row + column[None, :] * metric_column,
            mask=mask,
            other=0.0,
        ).to(tl.float32)
    beams = tl.load(
        start + (groups[:, None, None] * START + slot[:, :, None]) * BOOKS + book,
        mask=inside[:, None, None] & (slot < START)[:, :, None] & (book < BOOKS),
        other=0,
    ).to(tl.int32)
    valid = tl.broadcast_to(slot < START, (BLOCK_N, SLOTS))
    index = tl.broadcast_to(slot, (BLOCK_N, SLOTS))  # parent * entries + entry
    for visit in range(visits):
        m = ((order >> (visit * 4)) & 15).to(tl.int32)
        residual = _residual(
            target,
            codebooks,
            beams,
            group,
            column,
            mask,
            m,
            target_row,
            target_column,
            book_stride,
            entry_stride,
            book_column,
            BOOKS,
            BOOKS_WIDTH,
            ROWS,
        )
        constant = tl.sum(weight * residual * residual, axis=1)  # [ROWS]
        constant = tl.where(tl.reshape(valid, (ROWS,)), constant, float("inf"))
        left = -2.0 * weight * residual
        # As in assign: padding is better than anything and stays, the rest is there to be replaced.
        kept = tl.where(slot < BEAMS, float("inf"), float("-inf"))
        kept = tl.broadcast_to(kept, (BLOCK_N, SLOTS))
        index = tl.broadcast_to(slot, (BLOCK_N, SLOTS))
        worst = tl.full((BLOCK_N,), float("inf"), tl.float32)
        for first_entry in range(0, entries, BLOCK_K):
            entry = first_entry + tl.arange(0, BLOCK_K)
            c = tl.load(
                codebooks
                + m * book_stride
                + entry[None, :] * entry_stride
                + column[:, None] * book_column,
                mask=(entry < entries)[None, :] & (column < G)[:, None],
                other=0.0,
            ).to(tl.float32)  # [WIDTH, BLOCK_K]
            score = tl.broadcast_to(constant[:, None], (ROWS, BLOCK_K))
            score = tl.dot(left, c, score, input_precision="ieee")
            if metric is None:
                score += tl.sum(c * c, axis=0)[None, :]
            else:
                score = tl.dot(weight, c * c, score, input_precision="ieee")
            score = tl.where((entry < entries)[None, :], score, float("inf"))
            row_best = tl.min(score, axis=1)  # [ROWS]
            best = tl.min(tl.reshape(row_best, (BLOCK_N, SLOTS)), axis=1)
            while tl.max((best < worst).to(tl.int32), axis=0) > 0:
                better = best < worst
                # The lowest beam with that score, and its lowest entry.
                row_found = tl.min(tl.where(score == row_best[:, None], entry[None, :], entries), 1)
                candidate = slot * entries + tl.reshape(row_found, (BLOCK_N, SLOTS))
                is_best = tl.reshape(row_best, (BLOCK_N, SLOTS)) == best[:, None]
                found = tl.min(tl.where(is_best, candidate, SLOTS * entries), axis=1)
                bad = kept == worst[:, None]
                leaving = tl.max(tl.where(bad, index, -1), axis=1)
                replaced = bad & (index == leaving[:, None]) & better[:, None]
                kept = tl.where(replaced, best[:, None], kept)
                index = tl.where(replaced, found[:, None], index)
                worst = tl.max(kept, axis=1)
                # Take it out of the tile.
                taken = tl.broadcast_to(candidate == found[:, None], (BLOCK_N, SLOTS))
                taken = tl.where(taken, tl.reshape(row_found, (BLOCK_N, SLOTS)), -1)
                taken = tl.reshape(taken, (ROWS,))
                score = tl.where(entry[None, :] == taken[:, None], float("inf"), score)
                row_best = tl.min(score, axis=1)
                best = tl.min(tl.reshape(row_best, (BLOCK_N, SLOTS)), axis=1)
        parent = index // entries
        parents = tl.broadcast_to(parent[:, :, None], (BLOCK_N, SLOTS, BOOKS_WIDTH))
        beams = tl.gather(beams, parents, 1)
        beams = tl.where(book == m, (index - parent * entries)[:, :, None], beams)
        valid = (kept < float("inf")) & (slot < BEAMS)
    residual = _residual(
        target,
        codebooks,
        beams,
        group,
        column,
        mask,
        -1,
        target_row,
        target_column,
        book_stride,
        entry_stride,
        book_column,
        BOOKS,
        BOOKS_WIDTH,
        ROWS,
    )
    error = tl.reshape(tl.sum(weight * residual * residual, axis=1), (BLOCK_N, SLOTS))
    key = tl.where(valid & (error == error), error, float("inf"))
    # Place of a beam: how many are better, or as good and first in the order of the last visit.
    place = tl.zeros((BLOCK_N, SLOTS), tl.int32)
    for j in range(SLOTS):
        other = tl.sum(tl.where(slot == j, key, 0.0), axis=1)[:, None]
        other_index = tl.sum(tl.where(slot == j, index, 0), axis=1)[:, None]
        lower = (other_index < index) | ((other_index == index) & (j < slot))
        place += ((other < key) | ((other == key) & lower)).to(tl.int32)
    tl.store(
        out + (groups[:, None, None] * BEST + place[:, :, None]) * BOOKS + book,
        beams.to(tl.int64),
        mask=inside[:, None, None] & (place < BEST)[:, :, None] & (book < BOOKS),
    )


# Rows (groups x beams) of a program against entries at a time, by width of a group: the largest
# tiles that compile without spills for all three targets (tried: 64 and 32 rows, 64 and 32 entries,
# 4 and 8 warps). 128 registers on sm_80 for groups of 8, 25 % occupancy.
_TILES = {8: (32, 64), 16: (32, 64), 32: (32, 32), 64: (16, 32)}
_MAX_ROWS = 1024  # times width, where the beams of one group are more rows than that


def _blocks(g: int, books: int, start: int, beams: int, best: int) -> dict[str, int]:
    slots = triton.next_power_of_2(beams)
    width = max(least_columns(), triton.next_power_of_2(g))
    rows, block_k = _TILES[width]
    # The codes of more than two codebooks take registers: groups of 16 with a metric spill 8 bytes
    # on sm_90 with 64 entries.
    if slots > rows or (books > 2 and width == 16):
        block_k = 32
    return {
        "G": g,
        "WIDTH": width,
        "BOOKS": books,
        "BOOKS_WIDTH": triton.next_power_of_2(books),
        "START": start,
        "BEAMS": beams,
        "SLOTS": slots,
        "BEST": best,
        "BLOCK_N": max(1, rows // slots),
        "BLOCK_K": block_k,
    }


def _check_limits(books: int, g: int, beams: int) -> None:
    width = max(least_columns(), triton.next_power_of_2(g))
    limits = [
        ("weights of a group", g, max(_TILES)),
        ("codebooks", books, 1 << _ORDER_BITS),
        ("beams", beams, _MAX_ROWS // width),
    ]
    for what, number, limit in limits:
        if number > limit:
            raise ValueError(
                f"the Triton kernel takes at most {limit} {what}, got {number}; "
                f"PVOPT_KERNELS=reference has no limit"
            )


def beam_search(
    target: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    k: int,
    *,
    beam_size: int,
    order: Sequence[int],
    metric: Tensor | None = None,
) -> Tensor:
    """Return candidates ``[n, k', M]`` int64; see :func:`pvopt_kernels.beam_search`."""
    stack = codebooks if codebooks.dim() == 4 else codebooks[None]
    weights, books, entries, g = stack.shape
    n = len(target) // max(1, weights)
    beam_size = max(beam_size, k)
    if not order:
        return codes.long()[:, None].clone()
    residual = target.float()
    first = torch.arange(weights, device=codes.device).repeat_interleave(n) * entries  # [W n]
    for m in range(books):
        if m != order[0]:
            book = stack[:, m].reshape(-1, g).float()  # of all weights
            residual = residual - book.index_select(0, first + codes[:, m].long())
    best_first, _ = nearest(residual, stack[:, order[0]], min(beam_size, entries), metric=metric)
    found = best_first.shape[1]
    start = codes.long()[:, None].repeat(1, found, 1)  # [W n, beams, M]
    start[..., order[0]] = best_first
    if len(order) == 1:
        return start[:, :k].contiguous()
    _check_limits(books, g, beam_size)
    beams = found
    for _ in order[1:]:
        beams = min(beam_size, beams * entries)
    best = min(k, beams)
    blocks = _blocks(g, books, found, beam_size, best)
    out = torch.empty(len(target), best, books, dtype=torch.int64, device=target.device)
    launch(
        beam_search_kernel,
        (triton.cdiv(n, blocks["BLOCK_N"]), weights),
        target.device,
        target,
        stack,
        metric,
        start,
        out,
        n,
        entries,
        len(order) - 1,
        sum(m << (_ORDER_BITS * i) for i, m in enumerate(order[1:])),
        *target.stride(),
        *stack.stride(),
        *((0, 0) if metric is None else metric.stride()),
        **blocks,
        num_warps=4,
    )
    return out


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    variants = [  # dtype, g, M, beams, k, metric
        ("fp32", 8, 2, 8, 1, False),
        ("fp32", 8, 2, 5, 2, True),
        ("fp32", 16, 4, 16, 4, True),
        ("bf16", 32, 2, 4, 1, False),
        ("fp32", 64, 2, 16, 16, True),
        ("fp32", 16, 2, 64, 1, False),
    ]
    specs = []
    for dtype, g, books, beams, k, metric in variants:
        signature: dict[str, Any] = {"target": f"*{dtype}", "codebooks": f"*{dtype}"}
        signature |= {"start": "*i64", "out": "*i64", "order": "i64"}
        signature |= dict.fromkeys(("n", "entries", "visits", "target_row"), "i32")
        signature |= dict.fromkeys(("weight_stride", "book_stride", "entry_stride"), "i32")
        # Columns of a contiguous tensor have stride 1, which Triton takes for a constant.
        constants: dict[str, Any] = {"target_column": 1, "book_column": 1}
        if metric:
            signature |= {"metric": f"*{dtype}", "metric_row": "i32"}
            constants |= {"metric_column": 1}
        else:
            constants |= {"metric": None, "metric_row": 0, "metric_column": 0}
        blocks = _blocks(g, books, beams, beams, k)
        label = f"{dtype} g={g} M={books} beams={beams} k={k}{' metric' if metric else ''}"
        specs.append(
            CompileSpec(beam_search_kernel, signature, constants | blocks, label, num_warps=4)
        )
    return specs
