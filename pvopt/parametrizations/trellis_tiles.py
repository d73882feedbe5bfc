"""Tiles of a trellis that fit a weight, for those whose own do not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvopt.core.layout import matrix_shape

if TYPE_CHECKING:
    from .trellis import Trellis

__all__ = ["fitting_tiles"]

# Circles of fewer weights lose precision.
_ENOUGH = 128


def fitting_tiles(trellis: Trellis, shape: tuple[int, ...]) -> Trellis | None:
    """Return a trellis of other tiles, near its own in size, that divide a weight; None without.

    Example:
        >>> from pvopt import Trellis
        >>> from pvopt.parametrizations.trellis_tiles import fitting_tiles
        >>> tiles = fitting_tiles(Trellis(), (32, 64))
        >>> tiles.out_group, tiles.in_group
        (32, 4)
    """
    rows, columns = matrix_shape(shape)
    out_group = max(n for n in range(1, trellis.out_group + 1) if rows % n == 0)
    found = None
    for in_group in range(1, min(columns, 256) + 1):
        if found is not None and found.out_group * found.in_group >= _ENOUGH:
            break
        if columns % in_group == 0:
            try:
                found = replace(trellis, out_group=out_group, in_group=in_group)
            except ValueError:  # fewer bits than a state, or no part of a scale's inputs
                continue
    return found
