"""Packed uniform grids: their rows decoded, and multiplied while they are in the first cache."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .jit import jit
from .parallel import ParallelLoop
from .vectors import load, spread, store, total, unpack, word

__all__ = ["LANES", "uniform_decode_kernel", "uniform_matvec_kernel"]

# Entries of one accumulator of a product; rows are padded to a multiple.
LANES = 32


@jit
def eight_codes(packed, position):
    """Return the bytes from a position on, as many as there are up to eight, as one number."""
    end = len(packed)
    if position + 8 <= end:
        return word(packed, position)
    eight = np.uint64(0)
    for k in range(end - position):
        eight |= np.uint64(packed[position + k]) << np.uint64(8 * k)
    return eight


@jit
def decode_row(packed, row, bits, columns, scales, zeros, centre, row_scales, out, place):
    """Write the weights of one row from a place on: eight codes are as many bytes as bits."""
    position = row * ((columns * bits + 7) // 8)
    size = columns // row_scales
    aligned = size % 8 == 0
    if not aligned:
        for first in range(0, columns, 8):
            eight = eight_codes(packed, position)
            for i in range(min(8, columns - first)):
                code = eight >> np.uint64(bits * i) & np.uint64((1 << bits) - 1)
                out[place + first + i] = out.dtype.type(code)
            position += bits
    for s in range(row_scales):
        number = row * row_scales + s
        scale = scales[number]
        zero = zeros[number] if len(zeros) else centre
        first, last = place + s * size, place + (s + 1) * size
        if not aligned:
            for j in range(first, last):
                out[j] = (out[j] - zero) * scale
        elif bits <= 4:  # twice the same, for a constant: 885k weights take 0.27 ms, else 0.45
            for j in range(first, last, 8):
                level = unpack(eight_codes(packed, position), bits, 32) - spread(zero, 8)
                store(out, j, level * spread(scale, 8))
                position += bits
        else:
            for j in range(first, last, 8):
                level = unpack(eight_codes(packed, position), bits, 64) - spread(zero, 8)
                store(out, j, level * spread(scale, 8))
                position += bits


@functools.cache
def uniform_decode_kernel() -> ParallelLoop:
    """Return the loop over rows that makes them dense.

    Its arguments are flat arrays: packed rows, bits of a code, columns, scales, zero points (or
    none), the zero point in place of them, scales of a row, output.
    """

    def kernel(packed, bits, columns, scales, zeros, centre, row_scales, out, size, parts):
        for part in prange(parts):
            for row in range(size * part // parts, size * (part + 1) // parts):
                decode_row(
                    packed, row, bits, columns, scales, zeros, centre, row_scales, out,
                    row * columns,
                )  # fmt: skip

    return ParallelLoop(kernel)


@functools.cache
def uniform_matvec_kernel() -> ParallelLoop:
    """Return the loop over rows that multiplies a few tokens by them.

    Its arguments are as for :func:`uniform_decode_kernel`, but for tokens ``[tokens, padded]``,
    with zeros beyond the columns, and the output ``[tokens, rows]`` in place of the output.
    """

    def kernel(
        packed, bits, columns, scales, zeros, centre, row_scales, x, padded, out, size, parts
    ):
        for part in prange(parts):
            zero = scales.dtype.type(0)
            weights = np.zeros(padded, scales.dtype)
            for row in range(size * part // parts, size * (part + 1) // parts):
                decode_row(
                    packed, row, bits, columns, scales, zeros, centre, row_scales, weights, 0
                )
                for token in range(len(x) // padded):
                    first = token * padded
                    sums = spread(zero, LANES)
                    for j in range(0, padded, LANES):
                        sums = sums + load(weights, j, LANES) * load(x, first + j, LANES)
                    out[token * size + row] = total(sums)

    return ParallelLoop(kernel)
