"""Copies of pieces of memory, past the caches."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import fence, memory, read, stream, write

__all__ = ["copy_kernel"]


@functools.cache
def copy_kernel() -> ParallelLoop:
    """Return the loop over the pieces.

    Its arguments are flat arrays: addresses of the sources, addresses to write to (multiples of 64
    bytes), numbers in a piece, an array of their type (see :func:`.vectors.memory`).
    """

    def kernel(sources, outs, counts, kind, size, parts):
        for part in prange(parts):
            for n in range(size * part // parts, size * (part + 1) // parts):
                source, out = memory(sources[n], kind), memory(outs[n], kind)
                whole = counts[n] // 16 * 16
                for place in range(0, whole, 16):
                    stream(out, place, read(source, place, 16))
                for place in range(whole, counts[n]):
                    write(out, place, read(source, place, 1))
            fence()

    return ParallelLoop(kernel)
