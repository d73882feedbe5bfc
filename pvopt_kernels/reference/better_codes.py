"""Better codes for some groups of a stack of weights: search, decode, compare."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .decode import unsigned
from .decode_groups import scales_of

__all__ = ["Found", "better_codes"]

Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


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
    """Return new codes, decoded groups, errors, present codes and decoded groups.

    See :func:`pvopt_kernels.better_codes`; ``codes`` are the present ones ``[n, M]``, ``per_scale``
    groups share a scale; ``search`` and ``decode`` are implementations of ``beam_search`` and
    ``decode_groups``.
    """
    stack = codebooks, scales, per_scale
    current = unsigned(codes).long()
    present = decode(groups, current, *stack)
    errors_before = (present - target).square_().sum(1)
    units = scales_of(groups, scales, per_scale)
    # In units of the scale; a common factor of a group's errors does not change their order.
    unscaled = (target / units).masked_fill_(units == 0, 0.0)
    books = codebooks[0] if len(codebooks) == 1 else codebooks
    found = search(unscaled, books, current, 1, beam_size=beam_size, order=order)[:, 0]
    del unscaled, units  # of many groups there is much: nothing is kept longer than it is needed
    decoded = decode(groups, found, *stack)
    errors = (decoded - target).square_().sum(1)
    keep = (errors_before <= errors)[:, None]  # codes move only for a gain
    found = torch.where(keep, current, found, out=found)
    decoded = torch.where(keep, present, decoded, out=decoded)
    errors = torch.minimum(errors, errors_before)
    return found[:, None], decoded, errors[:, None], current, present
