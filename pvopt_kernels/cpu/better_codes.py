"""Better codes for some groups of a stack of weights on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pvopt_kernels.reference.better_codes import Found
from pvopt_kernels.reference.better_codes import better_codes as of_some

__all__ = ["better_codes"]

# Groups that are searched at once, at least: what is needed on the way takes a MiB, and each piece
# is enough work for compiled loops.
_AT_ONCE = 1 << 12


def better_codes(
    target: Tensor,
    groups: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    per_scale: int,
    beam_size: int,
    order: list[int],
    search: Callable[..., Tensor],
    decode: Callable[..., Tensor],
) -> Found:
    """Return codes, groups and errors; see :func:`pvopt_kernels.reference.better_codes`."""
    weights, rest = len(codebooks), (scales, per_scale, beam_size, order, search, decode)
    pieces = min(weights, len(groups) // _AT_ONCE)
    if pieces < 2:
        return of_some(target, groups, codes, codebooks, *rest)
    each = len(groups) // weights
    current = torch.empty(codes.shape, dtype=torch.int64)
    decoded, present = torch.empty_like(target), torch.empty_like(target)
    errors = target.new_empty(len(target), 1)
    whole = torch.empty_like(current[:, None]), decoded, errors, current, present
    for piece in range(pieces):
        first, last = weights * piece // pieces, weights * (piece + 1) // pieces
        part = slice(first * each, last * each)
        own = of_some(target[part], groups[part], codes[part], codebooks[first:last], *rest)
        for tensor, new in zip(whole, own, strict=True):
            tensor[part] = new
    return whole
