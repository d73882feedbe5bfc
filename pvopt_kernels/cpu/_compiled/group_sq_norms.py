"""Squared norms of the groups of a difference."""

from __future__ import annotations

import functools
from typing import Any

from .jit import jit
from .vectors import load, total

__all__ = ["sq_norms_kernel"]


@functools.cache
def sq_norms_kernel(group_size: int) -> Any:
    """Return the loop over groups.

    Its arguments are flat arrays: target, weight, output, first group, end.
    """

    def kernel(target, weight, out, start, stop):
        for j in range(start, stop):
            place = j * group_size
            difference = load(target, place, group_size) - load(weight, place, group_size)
            out[j] = total(difference * difference)

    return jit(kernel)
