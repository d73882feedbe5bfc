"""Groups of dense weights by their numbers."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import item, load, memory, read, store, write

__all__ = ["gather_kernel", "scatter_kernel"]


@functools.cache
def gather_kernel(in_group: int) -> ParallelLoop:
    """Return the loop over the groups of all weights.

    Its arguments are flat arrays: addresses of the weights, an array of their type (see
    :func:`.vectors.memory`), numbers of the groups, groups of a weight that are wanted, groups of a
    row, rows of a group, output.
    """

    def kernel(addresses, kind, groups, wanted, cols, out_group, out, size, parts):
        for part in prange(parts):
            for n in range(size * part // parts, size * (part + 1) // parts):
                weight = memory(addresses[n // wanted], kind)
                group = item(groups, n)
                row = group // cols
                place = (row * out_group * cols + group - row * cols) * in_group
                for r in range(out_group):
                    values = read(weight, place + r * cols * in_group, in_group)
                    store(out, (n * out_group + r) * in_group, values)

    return ParallelLoop(kernel)


@functools.cache
def scatter_kernel(in_group: int) -> ParallelLoop:
    """Return the loop that writes groups; its arguments are those of :func:`gather_kernel`."""

    def kernel(addresses, kind, groups, wanted, cols, out_group, rows, size, parts):
        for part in prange(parts):
            for n in range(size * part // parts, size * (part + 1) // parts):
                weight = memory(addresses[n // wanted], kind)
                group = item(groups, n)
                row = group // cols
                place = (row * out_group * cols + group - row * cols) * in_group
                for r in range(out_group):
                    values = load(rows, (n * out_group + r) * in_group, in_group)
                    write(weight, place + r * cols * in_group, values)

    return ParallelLoop(kernel)
