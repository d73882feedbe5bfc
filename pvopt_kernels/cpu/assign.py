"""The nearest codebook entries on CPUs."""

from __future__ import annotations

from torch import Tensor

from pvopt_kernels.reference.assign import assign as in_torch

from ._arrays import MAX_GROUP, compiled
from ._nearest import nearest_entries

__all__ = ["assign"]


def assign(
    target: Tensor, codebook: Tensor, k: int, *, metric: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes and squared errors ``[n, k]``; see :func:`pvopt_kernels.assign`."""
    if not (compiled(len(target) * len(codebook)) and 0 < target.shape[1] <= MAX_GROUP):
        return in_torch(target, codebook, k, metric=metric)
    return nearest_entries(target, codebook, metric, k)
