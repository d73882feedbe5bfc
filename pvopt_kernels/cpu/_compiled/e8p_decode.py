"""Points of E8P from tables of vectors and signs."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import item, load, spread, store

__all__ = ["decode_kernel"]


@functools.cache
def decode_kernel() -> ParallelLoop:
    """Return the loop over points.

    Its arguments are flat arrays: codes ``[n, 2]``, tables ``[256, 8]`` of vectors and of signs,
    table ``[256]`` of shifts, output ``[n, 8]``.
    """

    def kernel(codes, vectors, signs, shifts, out, size, parts):
        for part in prange(parts):
            for j in range(size * part // parts, size * (part + 1) // parts):
                vector, sign = item(codes, 2 * j), item(codes, 2 * j + 1)
                point = load(vectors, vector * 8, 8) * load(signs, sign * 8, 8)
                store(out, j * 8, point + spread(shifts[sign], 8))

    return ParallelLoop(kernel)
