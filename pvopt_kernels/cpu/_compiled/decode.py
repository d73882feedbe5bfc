"""Decoding of additive codes, and the errors of decoded groups, in one pass over the codes."""

from __future__ import annotations

import functools
from typing import Any

from .jit import jit
from .vectors import item, load, spread, store, total

__all__ = ["decode_kernel", "sq_errors_kernel"]


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


@functools.cache
def sq_errors_kernel(group_size: int, num_codebooks: int) -> Any:
    """Return the loop that writes the squared distance of each group to its target.

    Its arguments are those of :func:`decode_kernel`, with the flat target before the output.
    """

    def kernel(codes, books, entries, scales, per_scale, target, out, start, stop):
        for s in range(start, stop):
            scale = spread(scales[s], group_size)
            for j in range(s * per_scale, (s + 1) * per_scale):
                entry = load(books, item(codes, j * num_codebooks) * group_size, group_size)
                for m in range(1, num_codebooks):
                    code = m * entries + item(codes, j * num_codebooks + m)
                    entry = entry + load(books, code * group_size, group_size)
                difference = load(target, j * group_size, group_size) - entry * scale
                out[j] = total(difference * difference)

    return jit(kernel)
