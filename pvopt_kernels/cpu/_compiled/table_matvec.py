"""Product of a quantized matrix with a vector by tables of partial products."""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from .byte_tables import ENTRIES, POSITIONS, ROWS, add_looked_up, offset, store_planes
from .parallel import ParallelLoop
from .vectors import load, spread

__all__ = ["table_matvec_kernel"]

# Blocks of rows that read a block of tables one after the other, while the first-level cache has
# it: 1024 rows.
_TOGETHER = 16
# Of the range of the integers; the rest is for the rounding of a bound and of its products.
_FULL = 0.999


@functools.cache
def table_matvec_kernel(planes: int) -> ParallelLoop:
    r"""Return the loop over blocks of 64 rows, for codes of one byte.

    Every position of a row has a table of what its 256 codes contribute,
    :math:`T_{jm}[k] = \langle c_{mk}, x_j \rangle`, kept as integers of ``planes`` bytes in units
    of a bound of the 32 tables around it,
    :math:`\max_{jm} \lVert x_j \rVert \max_k \lVert c_{mk} \rVert`. So an entry is off by less than
    :math:`2^{-8 \cdot planes}` of that.

    Its arguments are flat arrays: x, codes, codebooks ``[M, g, 4, 4, 16]`` (entry
    ``64 a + 4 b + c`` at ``[a, c, b]``), largest norm of an entry of each codebook, size of a
    group, number of codebooks, scales of the rows, memory for the tables (``planes * 256`` bytes
    for each position up to a multiple of 32) and for a factor per 32 positions, output. There must
    be 64 rows of 32 codes: the last block of either starts earlier and repeats some.
    """
    steps = offset(planes) * _FULL

    def kernel(
        x, codes, columns, norms, group_size, number, scales, tables, factors, out, size, parts
    ):
        positions = len(x) // group_size * number
        blocks = len(factors)
        for part in prange(parts):
            for block in range(blocks * part // parts, blocks * (part + 1) // parts):
                start = min(POSITIONS * block, positions - POSITIONS)
                bound = 0.0
                for place in range(start, start + POSITIONS):
                    square = 0.0  # of float64, where no square is too large or too small
                    for i in range(group_size):
                        entry = np.float64(x[place // number * group_size + i])
                        square += entry * entry
                    reach = np.sqrt(square) * norms[place % number]
                    if reach > bound or np.isnan(reach):  # which then stays
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
