"""Tables and progress bars of the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["names_bar", "print_table", "progress_bar", "table_lines"]


def progress_bar(**options: Any) -> Any:
    """Return a bar on stderr that writes often to a terminal and seldom to a file."""
    from tqdm import tqdm

    seldom = {} if sys.stderr.isatty() else {"mininterval": 15.0, "ascii": True, "ncols": 100}
    return tqdm(dynamic_ncols=True, leave=True, **{**seldom, **options})


def names_bar(names: list[str]) -> Any:
    """Return a bar over the weights to quantize."""
    return progress_bar(iterable=names, desc="quantize", unit="weight")


def table_lines(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1
) -> list[str]:
    """Return rows of text with aligned columns, the first ``left`` of them to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text with aligned columns, the first one to the left."""
    print("\n".join(table_lines(header, rows)))
