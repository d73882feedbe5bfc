"""Squared norms of the groups of a difference."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import AHEAD, load, prefetch, total

__all__ = ["sq_norms_kernel"]


@functools.cache
def sq_norms_kernel(group_size: int) -> ParallelLoop:
    """Return the loop over groups.

    Its arguments are flat arrays: target, weight, output.
    """

    def kernel(target, weight, out, size, parts):
        for part in prange(parts):
            for j in range(size * part // parts, size * (part + 1) // parts):
                place = j * group_size
                prefetch(target, place + AHEAD)
                prefetch(weight, place + AHEAD)
                difference = load(target, place, group_size) - load(weight, place, group_size)
                out[j] = total(difference * difference)

    return ParallelLoop(kernel)
