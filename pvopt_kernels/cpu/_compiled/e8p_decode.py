"""Points of E8P from tables of vectors and signs."""

from __future__ import annotations

from .jit import jit
from .vectors import item, load, spread, store

__all__ = ["decode_points"]


@jit
def decode_points(codes, vectors, signs, shifts, out, start, stop):
    """Write points.

    Its arguments are flat arrays: codes ``[n, 2]``, tables ``[256, 8]`` of vectors and of signs,
    table ``[256]`` of shifts, output ``[n, 8]``; first point, end.
    """
    for j in range(start, stop):
        vector, sign = item(codes, 2 * j), item(codes, 2 * j + 1)
        point = load(vectors, vector * 8, 8) * load(signs, sign * 8, 8)
        store(out, j * 8, point + spread(shifts[sign], 8))
