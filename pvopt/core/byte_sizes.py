"""Sizes of files and memory as people write them."""

from __future__ import annotations

import re

__all__ = ["parse_bytes"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?")


def parse_bytes(text: str, name: str) -> float:
    """Return the bytes that a text such as ``24GB`` or ``16GiB`` stands for.

    Args:
        text: a number and a unit.
        name: what it is the size of, for messages.

    Raises:
        ValueError: for anything else.

    Example:
        >>> from pvopt.core.byte_sizes import parse_bytes
        >>> parse_bytes("1.5GB", "memory"), parse_bytes("2 MiB", "memory")
        (1500000000.0, 2097152.0)
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or not float(found[1]) or (found[3] and not found[2]):
        raise ValueError(f"{name} must be a size such as 24GB or 16GiB, got {text!r}")
    thousand = 1024 if found[3] else 1000
    return float(found[1]) * thousand ** ("kmgt".index(found[2]) + 1 if found[2] else 0)
