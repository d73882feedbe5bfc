"""Decoding of additive codes."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import item, load, spread, store

__all__ = ["decode_kernel"]


@functools.cache
def decode_kernel(group_size: int, num_codebooks: int) -> ParallelLoop:
    """Return the loop that writes the groups of some scales.

    Its arguments are flat arrays: codes, codebooks, entries of a codebook, scales, groups of a
    scale, output.
    """

    def kernel(codes, books, entries, scales, per_scale, out, size, parts):
        for part in prange(parts):
            for s in range(size * part // parts, size * (part + 1) // parts):
                scale = spread(scales[s], group_size)
                for j in range(s * per_scale, (s + 1) * per_scale):
                    entry = load(books, item(codes, j * num_codebooks) * group_size, group_size)
                    for m in range(1, num_codebooks):
                        code = m * entries + item(codes, j * num_codebooks + m)
                        entry = entry + load(books, code * group_size, group_size)
                    store(out, j * group_size, entry * scale)

    return ParallelLoop(kernel)
