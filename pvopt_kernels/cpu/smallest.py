"""The smallest entries of long rows on CPUs."""

from __future__ import annotations

from torch import Tensor

from pvopt_kernels.reference.smallest import smallest as in_torch

from ._extremes import extremes, has_extremes

__all__ = ["smallest"]


def smallest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and indices, ``[n, k]`` each; see :func:`pvopt_kernels.smallest`.

    Of equal entries the first wins where rows are long and ``k`` is not small.
    """
    if not has_extremes(scores, k):
        return in_torch(scores, k)
    return extremes(scores, k, largest=False)
