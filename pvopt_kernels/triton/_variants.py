"""Formats of weights for which the kernels that decode tiles are compiled in the tests."""

from __future__ import annotations

from typing import Any

from ._tiles import codebook_tile, grid_tile
from ._weights import codebook_width

__all__ = ["codebooks", "grid"]

Variant = tuple[tuple[str, ...], dict[str, Any]]


def codebooks(
    dtype: str, books: int, entries: int, in_group: int, *, out_group: int = 1, scaled: bool = True
) -> Variant:
    """Return the types of a source and the constants for a format of additive codebooks."""
    codes = "*u8" if entries <= 256 else "*u16"
    return (codes, f"*{dtype}", f"*{dtype}", "i32", "i32", "i32"), {
        "IN_GROUP": in_group,
        "WIDTH": codebook_width(in_group),
        "FORMAT": (books, entries, out_group, scaled),
        "TILE": codebook_tile,
    }


def grid(
    dtype: str, bits: int, *, zeros: bool = True, per_piece: bool = True, scaled: bool = True
) -> Variant:
    """Return the types of a source and the constants for a packed uniform grid."""
    return ("*u8", f"*{dtype}", f"*{dtype}", "i32", "i32", "i32"), {
        "IN_GROUP": 8,
        "WIDTH": 8,
        "FORMAT": (bits, zeros, per_piece, scaled),
        "TILE": grid_tile,
    }
