"""Sums by code: of given rows, and of the gradients of codebooks and scales."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import AHEAD, item, load, prefetch, spread, store, total

__all__ = ["codebook_grad_kernel", "sums_kernel"]


@functools.cache
def sums_kernel(group_size: int) -> ParallelLoop:
    """Return the loop that adds up the rows of some slabs.

    Its arguments are flat arrays: codes, entries, rows, one table of sums per slab (zeros).
    """

    def kernel(codes, entries, rows, sums, slabs, parts):
        for part in prange(parts):
            for slab in range(slabs * part // parts, slabs * (part + 1) // parts):
                table = slab * entries
                for j in range(len(codes) * slab // slabs, len(codes) * (slab + 1) // slabs):
                    place = (table + item(codes, j)) * group_size
                    row = load(rows, j * group_size, group_size)
                    store(sums, place, load(sums, place, group_size) + row)

    return ParallelLoop(kernel)


@functools.cache
def codebook_grad_kernel(group_size: int, num_codebooks: int) -> ParallelLoop:
    """Return the loop that sums the gradients of some slabs of scales.

    Its arguments are flat arrays: codes, codebooks, entries of a codebook, scales, groups of a
    scale, gradient, one table of sums per slab (zeros), gradient of the scales.
    """

    def kernel(codes, books, entries, scales, per_scale, grad, sums, scale_grad, slabs, parts):
        for part in prange(parts):
            for slab in range(slabs * part // parts, slabs * (part + 1) // parts):
                table = slab * num_codebooks * entries  # the slab's own sums
                first = len(scales) * slab // slabs
                last = len(scales) * (slab + 1) // slabs
                for s in range(first, last):
                    scale = spread(scales[s], group_size)
                    products = spread(scales.dtype.type(0), group_size)
                    for j in range(s * per_scale, (s + 1) * per_scale):
                        prefetch(grad, j * group_size + AHEAD)
                        gradient = load(grad, j * group_size, group_size)
                        scaled = gradient * scale
                        code = item(codes, j * num_codebooks)
                        entry = load(books, code * group_size, group_size)
                        place = (table + code) * group_size
                        store(sums, place, load(sums, place, group_size) + scaled)
                        for m in range(1, num_codebooks):
                            code = m * entries + item(codes, j * num_codebooks + m)
                            entry = entry + load(books, code * group_size, group_size)
                            place = (table + code) * group_size
                            store(sums, place, load(sums, place, group_size) + scaled)
                        products = products + gradient * entry
                    scale_grad[s] = total(products)

    return ParallelLoop(kernel)
