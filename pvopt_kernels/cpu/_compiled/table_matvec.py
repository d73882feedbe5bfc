"""Product of a quantized matrix with a vector by tables of partial products."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .byte_tables import ENTRIES, POSITIONS, ROWS, add_looked_up, offset, store_planes
from .parallel import ParallelLoop
from .vectors import load, spread

__all__ = ["table_matvec_kernel"]

# Blocks of rows that read a block of tables one after the other, while the caches have it: 2048
# rows. Half as many take 3 % longer, twice as many on one core a sixth.
_TOGETHER = 32
# Of the range of the integers; the rest is for the rounding of a bound and of its products.
_FULL = 0.999


@functools.cache
def table_matvec_kernel(planes: int) -> ParallelLoop:
    r"""Return the loop over blocks of 64 rows, for codes of one byte.

    Every position of a row has a table of what its 256 codes contribute,
    :math:`T_{jm}[k] = \langle c_{mk}, x_j \rangle`, kept as integers of ``planes`` bytes in units
    of a bound of the 64 tables around it,
    :math:`\max_{jm} \lVert x_j \rVert \max_k \lVert c_{mk} \rVert`. So an entry is off by half
    a unit of :func:`.offset`, :math:`2^{-16}` of that for two planes and :math:`2^{-23}` for three.

    Its arguments are flat arrays: x, codes, codebooks, entries of a codebook, size of a group,
    number of codebooks, scales of the rows, memory for the tables (``planes * 256`` bytes for each
    position up to a multiple of 64), output. There must be 64 rows of 64 codes: the last block of
    either starts earlier and repeats some.
    """
    steps = offset(planes) * _FULL

    def kernel(x, codes, books, entries, group_size, number, scales, tables, out, size, parts):
        # Codebooks as columns of 256, in the order of store_planes. Operations of torch would do
        # it in 4 % of the time of a product: between products they find nothing in the caches.
        columns = np.zeros(number * group_size * ENTRIES, np.float32)
        norms = np.zeros(number)
        for m in range(number):
            for k in range(entries):
                square = 0.0  # of float64, where no square is too large or too small
                for i in range(group_size):
                    entry = books[(m * entries + k) * group_size + i]
                    place = k // 64 * 64 + k % 4 * 16 + k % 64 // 4
                    columns[(m * group_size + i) * ENTRIES + place] = entry
                    square += np.float64(entry) * np.float64(entry)
                length = np.sqrt(square)
                if length > norms[m] or np.isnan(length):  # which then stays
                    norms[m] = length
        positions = len(x) // group_size * number
        blocks = -(-positions // POSITIONS)
        factors = np.empty(blocks, np.float32)
        for part in prange(parts):
            for block in range(blocks * part // parts, blocks * (part + 1) // parts):
                start = min(POSITIONS * block, positions - POSITIONS)
                bound = 0.0
                for place in range(start, start + POSITIONS):
                    square = 0.0
                    for i in range(group_size):
                        entry = np.float64(x[place // number * group_size + i])
                        square += entry * entry
                    reach = np.sqrt(square) * norms[place % number]
                    if reach > bound or np.isnan(reach):
                        bound = reach
                factors[block] = bound / steps
                unit = np.float32(steps / bound if bound > 0 else 0.0)
                for n in range(POSITIONS):
                    place = start + n
                    table = (POSITIONS * block + n) * planes * ENTRIES
                    # Positions of the block before count there.
                    once = unit if place >= POSITIONS * block else np.float32(0)
                    inputs = place // number * group_size
                    book = place % number * group_size * ENTRIES
                    for k in range(0, ENTRIES, 64):
                        a = b = c = d = spread(np.float32(0), 16)
                        for i in range(group_size):
                            factor = spread(x[inputs + i], 16)
                            column = book + ENTRIES * i + k
                            a = a + load(columns, column, 16) * factor
                            b = b + load(columns, column + 16, 16) * factor
                            c = c + load(columns, column + 32, 16) * factor
                            d = d + load(columns, column + 48, 16) * factor
                        u = spread(once, 16)
                        store_planes(tables, table + k, planes, a * u, b * u, c * u, d * u)
        for part in prange(parts):
            last = size * (part + 1) // parts
            sums = np.empty(_TOGETHER * ROWS, np.float32)
            for first in range(size * part // parts, last, _TOGETHER):
                end = min(first + _TOGETHER, last)
                sums[:] = 0
                for block in range(blocks):
                    start = min(POSITIONS * block, positions - POSITIONS)
                    for rows in range(first, end):
                        row = min(ROWS * rows, len(out) - ROWS)
                        add_looked_up(
                            codes,
                            row * positions + start,
                            positions,
                            tables,
                            POSITIONS * block,
                            planes,
                            factors[block],
                            sums,
                            (rows - first) * ROWS,
                        )
                for rows in range(first, end):
                    row = min(ROWS * rows, len(out) - ROWS)
                    for i in range(ROWS * rows - row, ROWS):
                        place = (rows - first) * ROWS + i % 2 * (ROWS // 2) + i // 2
                        out[row + i] = sums[place] * scales[row + i]

    return ParallelLoop(kernel)
