"""Folders that are replaced as a whole: whatever happens, a complete one can be found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError

__all__ = ["complete_folder", "replaced_folder"]


def _beside(folder: Path, suffix: str) -> Path:
    return folder.parent / f".{folder.name}.{suffix}"


def _absolute(folder: str | Path) -> Path:
    # Not resolve(): a link to a folder is to be replaced where it leads, and abspath keeps "..".
    return Path(os.path.realpath(folder))


def complete_folder(folder: str | Path) -> Path:
    """Return where the complete content of a folder lies.

    That is the folder itself, or, if a writer was killed between its two renames, the previous
    content that it had moved aside. Nothing on the disk is changed.

    Args:
        folder: as given to ``replaced_folder``.

    Returns:
        An existing folder.

    Raises:
        CheckpointError: if there is none.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> complete_folder(folder).samefile(folder)
        True
    """
    target = _absolute(folder)
    for candidate in (target, _beside(target, "previous")):
        if candidate.is_dir():
            return candidate
    found = "a file" if target.exists() else "nothing"
    raise CheckpointError(f"{folder}: must be a checkpoint folder, found {found}")


@contextmanager
def replaced_folder(folder: str | Path, marker: str) -> Iterator[Path]:
    """Give a fresh folder to write into, and put it in the place of the old one at the end.

    The new folder is written beside the old one, flushed to the disk with all its files, and
    swapped in by two renames: old aside, new in. If the block raises, the old one stays.

    Args:
        folder: the place to write to; parents are made.
        marker: name of a file that proves an existing folder to be ours.

    Yields:
        An empty folder.

    Raises:
        CheckpointError: if something other than a folder of ours is in the place.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "state"
        >>> with replaced_folder(place, "mark") as new:
        ...     _ = (new / "mark").write_text("1")
        >>> complete_folder(place).name, (place / "mark").read_text()
        ('state', '1')
    """
    target = _absolute(folder)
    partial, previous = _beside(target, "partial"), _beside(target, "previous")
    if target.exists():
        ours = target.is_dir() and ((target / marker).is_file() or not any(target.iterdir()))
        if not ours:
            raise CheckpointError(
                f"{folder}: exists and is not a checkpoint (it has no {marker}); it is not replaced"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)  # of a writer that was killed
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        if target.exists():
            # A leftover beside a complete folder was to be deleted when its writer was killed.
            _remove(previous)
            os.rename(target, previous)
        try:
            os.rename(partial, target)
        except BaseException:
            if previous.exists() and not target.exists():
                os.rename(previous, target)
            raise
    except BaseException:
        _remove(partial)
        raise
    _flush_directory(target.parent)
    _remove(previous)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _flush(folder: Path) -> None:
    """Force a folder, all that is in it and its name to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(Path(root) / name, "rb+") as file:
                os.fsync(file.fileno())
        _flush_directory(Path(root))
    _flush_directory(folder.parent)


def _flush_directory(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows: folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
