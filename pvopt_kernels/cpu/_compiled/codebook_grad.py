"""Sums by code: of given rows, and of the gradients of codebooks and scales."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import AHEAD, item, load, memory, prefetch, read, spread, store, total

__all__ = ["codebook_grad_kernel", "sums_kernel", "tables_kernel"]


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
def codebook_grad_kernel(group_size: int, num_codebooks: int, out_group: int) -> ParallelLoop:
    """Return the loop over the slabs of all weights; a slab is some scales of a weight.

    Its arguments are flat arrays: codes, codebooks, entries of a codebook, scales, scales of a
    row, groups of a scale, scales of a weight, addresses of the gradients, an array of their type
    (see :func:`.vectors.memory`), slabs of a weight, one table of sums per slab, gradient of the
    scales.
    """
    in_group = group_size // out_group

    def kernel(
        codes, books, entries, scales, row_scales, per_scale, weight_scales, addresses, kind, slabs,
        sums, scale_grad, size, parts,
    ):  # fmt: skip
        for part in prange(parts):
            row_groups = row_scales * per_scale
            table = num_codebooks * entries * group_size
            for n in range(size * part // parts, size * (part + 1) // parts):
                w = n // slabs
                slab = n - w * slabs
                book = w * num_codebooks * entries
                shift = (n - w) * num_codebooks * entries  # from a book's entry to its own sums
                grad = memory(addresses[w], kind)
                sums[n * table : (n + 1) * table] = 0
                low = weight_scales * slab // slabs
                high = weight_scales * (slab + 1) // slabs
                for t in range(low, high):
                    s = w * weight_scales + t
                    scale = spread(scales[s], in_group)
                    products = spread(scales.dtype.type(0), in_group)
                    row = t // row_scales
                    column = (t - row * row_scales) * per_scale * in_group
                    for r in range(out_group):  # entries of a group are row-major
                        place = (row * out_group + r) * row_groups * in_group + column
                        inside = r * in_group
                        for j in range(s * per_scale, (s + 1) * per_scale):
                            prefetch(grad, place + AHEAD)
                            gradient = read(grad, place, in_group)
                            scaled = gradient * scale
                            code = book + item(codes, j * num_codebooks)
                            entry = load(books, code * group_size + inside, in_group)
                            at = (shift + code) * group_size + inside
                            store(sums, at, load(sums, at, in_group) + scaled)
                            for m in range(1, num_codebooks):
                                code = book + m * entries + item(codes, j * num_codebooks + m)
                                entry = entry + load(books, code * group_size + inside, in_group)
                                at = (shift + code) * group_size + inside
                                store(sums, at, load(sums, at, in_group) + scaled)
                            products = products + gradient * entry
                            place += in_group
                    scale_grad[s] = total(products)

    return ParallelLoop(kernel)


@functools.cache
def tables_kernel(width: int) -> ParallelLoop:
    """Return the loop that adds tables up, slab after slab; it works on pieces of ``width`` sums.

    Its arguments are flat arrays: tables ``[W, slabs, pieces * width]``, slabs, pieces of a table,
    output ``[W, pieces * width]``.
    """

    def kernel(tables, slabs, pieces, out, size, parts):
        for part in prange(parts):
            for n in range(size * part // parts, size * (part + 1) // parts):
                w = n // pieces
                place = (w * slabs * pieces + n - w * pieces) * width
                sums = load(tables, place, width)
                for _ in range(1, slabs):
                    place += pieces * width
                    sums = sums + load(tables, place, width)
                store(out, n * width, sums)

    return ParallelLoop(kernel)
