"""Decoding of additive codes."""

from __future__ import annotations

import functools
from typing import Any

from .jit import jit
from .vectors import item, load, spread, store

__all__ = ["decode_kernel"]


@functools.cache
def decode_kernel(group_size: int, num_codebooks: int) -> Any:
    """Return the loop that writes the groups of some scales.

    Its arguments are flat arrays: codes, codebooks, entries of a codebook, scales, groups of a
    scale, output, first scale, end.
    """

    def kernel(codes, books, entries, scales, per_scale, out, start, stop):
        for s in range(start, stop):
            scale = spread(scales[s], group_size)
            for j in range(s * per_scale, (s + 1) * per_scale):
                entry = load(books, item(codes, j * num_codebooks) * group_size, group_size)
                for m in range(1, num_codebooks):
                    code = m * entries + item(codes, j * num_codebooks + m)
                    entry = entry + load(books, code * group_size, group_size)
                store(out, j * group_size, entry * scale)

    return jit(kernel)
