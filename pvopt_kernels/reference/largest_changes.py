"""The groups of a stack of weights that are farthest from targets, some weights at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

__all__ = ["largest_changes"]

# Weights whose groups are compared at once: their norms take 8 MiB for groups of 8.
_AT_ONCE = 1 << 24


def largest_changes(
    targets: Sequence[Tensor],
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    k: int,
    out_group: int,
    sq_norms: Callable[..., tuple[Tensor, Tensor]],
    largest: Callable[..., tuple[Tensor, Tensor]],
    *,
    at_once: int = _AT_ONCE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return norms, numbers and squared norms of the weights.

    See :func:`pvopt_kernels.largest_changes`; ``sq_norms`` and ``largest`` are implementations of
    ``decoded_sq_norms`` and ``largest``, ``at_once`` is the number of weights that are worked on.
    """
    weights = len(codes)
    together = max(1, at_once // max(1, codes[:1, ..., 0].numel() * codebooks.shape[3]))
    if together >= weights:
        changes, norms = sq_norms(targets, codes, codebooks, scales, out_group)
        return *largest(changes.sqrt_(), k), norms
    found: list[Tensor] = []
    for first in range(0, weights, together):
        part = slice(first, first + together)
        own = targets[part], codes[part], codebooks[part], scales[part]
        changes, norms = sq_norms(*own, out_group)
        parts = *largest(changes.sqrt_(), k), norms
        if not found:
            found = [new.new_empty(weights, *new.shape[1:]) for new in parts]
        # Results of pieces that are kept would lie in the holes that the next norms fit into.
        for whole, new in zip(found, parts, strict=True):
            whole[part] = new
    values, places, norms = found
    return values, places, norms
