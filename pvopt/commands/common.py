"""What the commands share: help on forms, progress bars, tables, words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from tqdm import tqdm

from pvopt.core.registry import Registry

__all__ = [
    "PARTS",
    "CommandParser",
    "add_dtype",
    "names_bar",
    "prepare_dtype",
    "print_table",
    "progress_bar",
    "table_lines",
    "text_part",
]

PARTS = ("held-out", "train", "all")


class CommandParser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and explains short names below its help.

    Attributes:
        explained: registries whose forms are listed, with those registered since.
    """

    explained: Sequence[Registry[Any]] = ()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def format_help(self) -> str:
        return super().format_help() + "".join(f"\n{_forms(found)}" for found in self.explained)


def _forms(registry: Registry[Any]) -> str:
    """Return a table of the forms of short names."""
    rows = [(form.form, form.meaning, form.example) for form in registry.forms]
    lines = table_lines((registry.kind, "meaning", "example"), rows, left=3)
    return "".join(f"{line}\n" for line in lines)


def progress_bar(**options: Any) -> Any:
    """Return a bar on stderr that writes often to a terminal and seldom to a file."""
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
