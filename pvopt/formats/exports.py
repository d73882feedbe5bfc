"""Folders for other programs: what we wrote into them, and what we read of theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from .errors import CheckpointError
from .files import read_bytes, read_json

__all__ = ["EXPORT", "foreign_files", "settings_copied", "write_export"]

#: Says that the folder is ours, and so may be replaced by us.
EXPORT = "pvopt_export.json"
# What transformers reads beside tensors.
_SETTINGS = {".json", ".txt", ".model", ".jinja"}
_MOST_BYTES = 1 << 27


def write_export(folder: Path, format: str) -> None:
    """Say which files of a folder are ours, once they are written."""
    content = {
        "format": format,
        "pvopt": version("pvopt"),
        "files": sorted(entry.name for entry in folder.iterdir()),
    }
    (folder / EXPORT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def foreign_files(folder: Path) -> list[str]:
    """Return what is in an exported folder beside what was exported."""
    try:
        content = read_json(folder, EXPORT)
        known = {EXPORT, *map(str, content["files"])}
    except (CheckpointError, KeyError, TypeError):
        known = {EXPORT}
    return [
        entry.name
        for entry in folder.iterdir()
        if entry.name not in known and not entry.name.startswith((".lock", ".DS_Store", ".nfs"))
    ]


@contextmanager
def settings_copied(folder: Path) -> Iterator[Path]:
    """Give a folder with copies of the settings and the tokenizer of another one.

    Raises:
        CheckpointError: if one is no regular file or too large; messages name the original folder.
    """
    with TemporaryDirectory() as scratch:
        for entry in sorted(folder.iterdir()):
            if entry.suffix in _SETTINGS and not entry.name.endswith(".index.json"):
                content = read_bytes(folder, entry.name, _MOST_BYTES)
                Path(scratch, entry.name).write_bytes(content)
        try:
            yield Path(scratch)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(scratch, str(folder))) from error
