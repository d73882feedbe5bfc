"""Beam search on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.reference.beam_search import beam_search as in_torch

from ._arrays import MAX_GROUP, compiled, integers, padded_columns, single
from ._nearest import nearest_entries

__all__ = ["beam_search"]

# Scores of one group stay in the first-level cache; torch shares a larger codebook among groups.
_MAX_ENTRIES = 4096


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
    n, group_size = target.shape
    number, entries = codebooks.shape[-3:-1]
    exact = number == 1 and len(order) == 1
    if not (
        compiled(n * entries * len(order))
        and codebooks.dtype != torch.float64
        and 0 < group_size <= MAX_GROUP
        and (exact or entries <= _MAX_ENTRIES)
    ):
        return in_torch(
            target, codebooks, codes, k, beam_size=beam_size, order=order, metric=metric
        )
    stack = codebooks if codebooks.dim() == 4 else codebooks[None]
    if exact:
        return nearest_entries(target, stack[:, 0], metric, min(k, entries))[0][..., None]
    from ._compiled.beam_search import LANES, beam_kernel

    size, found = max(beam_size, k), 1
    for visit in range(len(order)):
        found = min(k if visit == len(order) - 1 else size, found * entries)
    points = single(target)
    weights = points if metric is None else single(metric)
    books, current = single(stack), integers(codes)
    columns = padded_columns(books.reshape(stack.shape), LANES)
    visits = np.array(order, np.int64)
    out = torch.empty(n, found, number, dtype=torch.int64)
    kernel = beam_kernel(group_size, number, metric is not None)
    # Of 2x8g8 and beam 5, 16 groups take 12 us on one thread and 14 on two, 32 take 21 and 19.
    kernel(
        points, weights, n // len(stack), books, columns.reshape(-1), entries, columns.shape[-1],
        current, visits, size, k, integers(out), size=n, least=16,
    )  # fmt: skip
    return out
