"""What the commands share: progress bars, tables, words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

__all__ = [
    "PARTS",
    "add_dtype",
    "names_bar",
    "prepare_dtype",
    "print_table",
    "progress_bar",
    "text_part",
]

PARTS = ("held-out", "train", "all")


def progress_bar(**options: Any) -> Any:
    """Return a bar on stderr that writes often to a terminal and seldom to a file."""
    seldom = {} if sys.stderr.isatty() else {"mininterval": 15.0, "ascii": True, "ncols": 100}
    return tqdm(dynamic_ncols=True, leave=True, **{**seldom, **options})


def names_bar(names: list[str]) -> Any:
    """Return a bar over the weights to quantize."""
    return progress_bar(iterable=names, desc="quantize", unit="weight")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text with aligned columns, the first one to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the dtype of the computation."""
    from pvopt.tuning.settings import DTYPES

    parser.add_argument(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="of the computation; default auto: the one that a checkpoint was tuned in, else that "
        "of a model in half precision, else bfloat16 where the hardware multiplies it",
    )


def prepare_dtype(wanted: str, model: Any, metadata: Mapping[str, Any]) -> str:
    """Return the dtype to compute in, by its name; float32 widens a model in half precision."""
    from pvopt.tuning import computing_dtype

    dtype = computing_dtype(wanted, model, metadata)
    if dtype == "float32":
        model.float()
    return dtype


def text_part(text: str, part: str) -> str:
    """Return a part of a text, cut as ``tune`` cuts it."""
    from pvopt.llm import split_text

    if part == "all":
        return text
    train, held_out = split_text(text)
    return train if part == "train" else held_out
