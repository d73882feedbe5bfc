"""Product of a quantized matrix with a vector, without the matrix."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import item, load, spread, total

__all__ = ["matvec_kernel"]


@functools.cache
def matvec_kernel(group_size: int, num_codebooks: int) -> ParallelLoop:
    """Return the loop over blocks of four rows.

    Its arguments are flat arrays: x, codes, codebooks, entries of a codebook, scales, scales of a
    row, groups of a scale, output. The last block may end beyond the last row: it then starts
    earlier and repeats rows, so there must be at least four.
    """

    def kernel(x, codes, books, entries, scales, row_scales, per_scale, out, size, parts):
        for part in prange(parts):
            step = row_scales * per_scale * num_codebooks  # codes of a row
            zero = books.dtype.type(0)
            for block in range(size * part // parts, size * (part + 1) // parts):
                row = min(4 * block, len(out) - 4)
                # Four rows at once: their sums do not wait for each other, and share x.
                y0 = y1 = y2 = y3 = zero
                for s in range(row_scales):
                    a0 = a1 = a2 = a3 = spread(zero, group_size)
                    for j in range(s * per_scale, (s + 1) * per_scale):
                        p0 = row * step + j * num_codebooks
                        p1, p2, p3 = p0 + step, p0 + 2 * step, p0 + 3 * step
                        e0 = load(books, item(codes, p0) * group_size, group_size)
                        e1 = load(books, item(codes, p1) * group_size, group_size)
                        e2 = load(books, item(codes, p2) * group_size, group_size)
                        e3 = load(books, item(codes, p3) * group_size, group_size)
                        for m in range(1, num_codebooks):
                            book = m * entries
                            e0 = e0 + load(
                                books, (book + item(codes, p0 + m)) * group_size, group_size
                            )
                            e1 = e1 + load(
                                books, (book + item(codes, p1 + m)) * group_size, group_size
                            )
                            e2 = e2 + load(
                                books, (book + item(codes, p2 + m)) * group_size, group_size
                            )
                            e3 = e3 + load(
                                books, (book + item(codes, p3 + m)) * group_size, group_size
                            )
                        inputs = load(x, j * group_size, group_size)
                        a0 = a0 + e0 * inputs
                        a1 = a1 + e1 * inputs
                        a2 = a2 + e2 * inputs
                        a3 = a3 + e3 * inputs
                    place = row * row_scales + s
                    y0 += total(a0) * scales[place]
                    y1 += total(a1) * scales[place + row_scales]
                    y2 += total(a2) * scales[place + 2 * row_scales]
                    y3 += total(a3) * scales[place + 3 * row_scales]
                out[row] = y0
                out[row + 1] = y1
                out[row + 2] = y2
                out[row + 3] = y3

    return ParallelLoop(kernel)
