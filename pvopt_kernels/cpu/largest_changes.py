"""The groups of a stack of weights that are farthest from targets, on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pvopt_kernels.reference.largest_changes import largest_changes as in_steps

__all__ = ["largest_changes"]

# Weights whose groups are compared at once: 1 MiB of norms for groups of 8, which are then still in
# a cache when their roots are taken and the largest are found.
_AT_ONCE = 1 << 21


def largest_changes(
    targets: Sequence[Tensor],
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    k: int,
    out_group: int,
    sq_norms: Callable[..., tuple[Tensor, Tensor]],
    largest: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return norms, numbers and squared norms; see :func:`pvopt_kernels.largest_changes`."""
    stack = targets, codes, codebooks, scales
    return in_steps(*stack, k, out_group, sq_norms, largest, at_once=_AT_ONCE)
