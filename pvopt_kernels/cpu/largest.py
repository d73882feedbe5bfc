"""The largest entries of each row on CPUs."""

from __future__ import annotations

from torch import Tensor

from pvopt_kernels.reference.largest import largest as in_torch

from ._extremes import extremes, has_extremes

__all__ = ["largest"]


def largest(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and indices, ``[n, k]`` each; see :func:`pvopt_kernels.largest`."""
    if not has_extremes(keys, k):
        return in_torch(keys, k)
    return extremes(keys, k, largest=True)
