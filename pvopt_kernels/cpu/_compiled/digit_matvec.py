"""Product of a packed uniform grid with a vector of fixed-point numbers."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .byte_products import CODES, DIGITS, dot_group, store_digits
from .parallel import ParallelLoop
from .vectors import least, load, pick, spread, total

__all__ = ["digit_matvec_kernel"]


@functools.cache
def digit_matvec_kernel(bits: int) -> ParallelLoop:
    r"""Return the loop over rows, for grids whose scales are for a multiple of 64 columns.

    The inputs of a scale are fixed-point numbers :math:`v_j` of three digits in base 256, each
    from -128 to 127, in units :math:`u_s` of their largest size over :math:`127 \cdot 256^2`:

    .. math:: y = \sum_s s_s \Bigl( u_s \sum_{j \in s} q_j v_j - z_s \sum_{j \in s} x_j \Bigr)

    Its arguments are flat arrays: packed rows, x, scales, zero points (or none), the zero point in
    place of them, scales of a row, memory for the digits (three bytes for each column), output.
    """
    most = 127.0 * 256 ** (DIGITS - 1)

    def kernel(packed, x, scales, zeros, centre, row_scales, digits, out, size, parts):
        columns = len(x)
        group = columns // row_scales
        units = np.empty(row_scales, np.float32)
        sixteenths = np.empty(row_scales, np.float32)  # of the sums of the inputs
        for s in range(row_scales):
            sizes = sums = nothing = spread(np.float32(0), 16)
            for j in range(s * group, (s + 1) * group, 16):
                entries = load(x, j, 16)
                sums = sums + entries
                entries = pick(entries, nothing, nothing - entries, entries)
                sizes = pick(sizes, entries, entries, sizes)
            sixteenths[s] = total(sums) / np.float32(16)  # not finite where an entry is not
            bound = -least(nothing - sizes)
            units[s] = bound / most
            steps = spread(np.float32(most / bound if bound > 0 else 0.0), 16)
            for first in range(s * group, (s + 1) * group, CODES):
                for i in range(0, CODES, 16):
                    entries = load(x, first + i, 16)
                    store_digits(digits, first * DIGITS + i, entries * steps)
        for part in prange(parts):
            for row in range(size * part // parts, size * (part + 1) // parts):
                place = row * (columns // 8 * bits)
                sums = spread(np.float32(0), 16)
                for s in range(row_scales):
                    number = row * row_scales + s
                    zero = zeros[number] if len(zeros) else centre
                    products = dot_group(
                        packed, place, bits, digits, s * group * DIGITS, group // CODES
                    )
                    level = products * spread(units[s], 16) - spread(zero * sixteenths[s], 16)
                    sums = sums + level * spread(scales[number], 16)
                    place += group // 8 * bits
                out[row] = total(sums)

    return ParallelLoop(kernel)
