"""Decoding of additive codes, into weights that are given."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import fence, item, load, memory, spread, store, stream, write

__all__ = ["decode_groups_kernel", "decode_kernel"]


@functools.cache
def decode_kernel(
    group_size: int, num_codebooks: int, out_group: int, streamed: bool
) -> ParallelLoop:
    """Return the loop over the block rows of all weights.

    Its arguments are flat arrays: codes, codebooks, entries of a codebook, scales, scales of a
    row, groups of a scale, block rows of a weight, addresses of the weights, an array of their type
    (see :func:`.vectors.memory`). If ``streamed``, writing goes past the caches.
    """
    in_group = group_size // out_group

    def kernel(
        codes, books, entries, scales, row_scales, per_scale, rows, addresses, kind, size, parts
    ):
        for part in prange(parts):
            columns = row_scales * per_scale * in_group
            for n in range(size * part // parts, size * (part + 1) // parts):
                w = n // rows
                first = w * num_codebooks * entries
                out = memory(addresses[w], kind)
                for r in range(out_group):  # rows of the block; entries of a group are row-major
                    place = ((n - w * rows) * out_group + r) * columns
                    inside = r * in_group
                    for s in range(n * row_scales, (n + 1) * row_scales):
                        scale = spread(scales[s], in_group)
                        for j in range(s * per_scale, (s + 1) * per_scale):
                            code = first + item(codes, j * num_codebooks)
                            entry = load(books, code * group_size + inside, in_group)
                            for m in range(1, num_codebooks):
                                code = first + m * entries + item(codes, j * num_codebooks + m)
                                entry = entry + load(books, code * group_size + inside, in_group)
                            if streamed:
                                stream(out, place, entry * scale)
                            else:
                                write(out, place, entry * scale)
                            place += in_group
            if streamed:
                fence()

    return ParallelLoop(kernel)


@functools.cache
def decode_groups_kernel(group_size: int, num_codebooks: int) -> ParallelLoop:
    """Return the loop over some groups of all weights.

    Its arguments are flat arrays: numbers of the groups, groups of a weight that are wanted, codes
    of these groups, codebooks, entries of a codebook, scales, groups of a scale, output.
    """

    def kernel(groups, wanted, codes, books, entries, scales, per_scale, out, size, parts):
        for part in prange(parts):
            for n in range(size * part // parts, size * (part + 1) // parts):
                first = (n // wanted) * num_codebooks * entries
                code = first + item(codes, n * num_codebooks)
                entry = load(books, code * group_size, group_size)
                for m in range(1, num_codebooks):
                    code = first + m * entries + item(codes, n * num_codebooks + m)
                    entry = entry + load(books, code * group_size, group_size)
                scale = scales[item(groups, n) // per_scale]
                store(out, n * group_size, entry * spread(scale, group_size))

    return ParallelLoop(kernel)
