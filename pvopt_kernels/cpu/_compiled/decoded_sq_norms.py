"""Squared norms of groups, of what the codes decode to and of its difference from a target."""

from __future__ import annotations

import functools

from numba import prange

from .parallel import ParallelLoop
from .vectors import AHEAD, item, load, memory, prefetch, read, spread, total

__all__ = ["decoded_sq_norms_kernel"]


@functools.cache
def decoded_sq_norms_kernel(group_size: int, num_codebooks: int, out_group: int) -> ParallelLoop:
    """Return the loop over the block rows of all weights.

    Its arguments are those of :func:`.decode.decode_kernel` with targets in place of the weights
    to write, then the outputs: squared norms of the differences of all groups, squared norms of the
    decoded block rows.
    """
    in_group = group_size // out_group

    def kernel(
        codes, books, entries, scales, row_scales, per_scale, rows, addresses, kind, changes, norms,
        size, parts,
    ):  # fmt: skip
        for part in prange(parts):
            zero = scales.dtype.type(0)
            columns = row_scales * per_scale * in_group
            for n in range(size * part // parts, size * (part + 1) // parts):
                w = n // rows
                first = w * num_codebooks * entries
                target = memory(addresses[w], kind)
                squares = spread(zero, in_group)
                for r in range(out_group):  # rows of the block; entries of a group are row-major
                    place = ((n - w * rows) * out_group + r) * columns
                    inside = r * in_group
                    for s in range(n * row_scales, (n + 1) * row_scales):
                        scale = spread(scales[s], in_group)
                        for j in range(s * per_scale, (s + 1) * per_scale):
                            prefetch(target, place + AHEAD)
                            code = first + item(codes, j * num_codebooks)
                            entry = load(books, code * group_size + inside, in_group)
                            for m in range(1, num_codebooks):
                                code = first + m * entries + item(codes, j * num_codebooks + m)
                                entry = entry + load(books, code * group_size + inside, in_group)
                            decoded = entry * scale
                            squares = squares + decoded * decoded
                            difference = read(target, place, in_group) - decoded
                            change = total(difference * difference)
                            if out_group == 1 or r == 0:
                                changes[j] = change
                            else:
                                changes[j] += change
                            place += in_group
                norms[n] = total(squares)

    return ParallelLoop(kernel)
