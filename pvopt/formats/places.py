"""Where a folder may be written: in the place of one of ours, or where there is none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from .errors import CheckpointError

__all__ = ["absolute", "check_replaceable", "check_room"]


def absolute(folder: str | Path) -> Path:
    """Return where a folder is or would be, whatever the working directory later is."""
    # Not resolve(): a link to a folder is to be replaced where it leads, and abspath keeps "..".
    return Path(os.path.realpath(folder))


def check_replaceable(
    folder: str | Path, marker: str, foreign: Callable[[Path], Collection[str]] = lambda _: ()
) -> None:
    """Raise unless a folder is ours or can be made; an empty folder is made beside it to see that.

    Args:
        folder: as given to ``replaced_folder``.
        marker: as given to it.
        foreign: as given to it.

    Raises:
        CheckpointError: if something else is in the place, or a folder cannot be made there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.places import check_replaceable
        >>> file = Path(tempfile.mkdtemp()) / "file"
        >>> file.touch()
        >>> check_replaceable(file / "state", "mark")
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...state: cannot be made, as .../file is a file
    """
    target = absolute(folder)
    if target.exists():
        _check_ours(folder, target, marker, foreign)
    check_room(folder)


def _check_ours(
    folder: str | Path, target: Path, marker: str, foreign: Callable[[Path], Collection[str]]
) -> None:
    ours = target.is_dir() and ((target / marker).is_file() or {*os.listdir(target)} <= {".lock"})
    if not ours:
        raise CheckpointError(
            f"{folder}: exists and holds something else (it has no {marker}); it is not replaced"
        )
    others = sorted(foreign(target))
    if others:
        shown = ", ".join(others[:5]) + ", ..." * (len(others) > 5)
        raise CheckpointError(
            f"{folder}: holds more than a checkpoint ({shown}); it is not replaced"
        )


def check_room(path: str | Path) -> None:
    """Raise unless a file or a folder can be made where a path leads; its parents are made, too.

    Permissions do not tell: the folders of /proc are writable, and nothing can be made in them.

    Args:
        path: of what is to be made or replaced; nothing of it is changed.

    Raises:
        CheckpointError: if nothing can be made there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.places import check_room
        >>> folder = Path(tempfile.mkdtemp())
        >>> check_room(folder / "runs" / "mine")
        >>> list(folder.iterdir())
        []
    """
    target = absolute(path)
    there = next((parent for parent in target.parents if os.path.lexists(parent)), target)
    if not there.is_dir():
        raise CheckpointError(f"{path}: cannot be made, as {there} is a file")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".pvopt", dir=there))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be made, as {there} is not writable ({error.strerror})"
        ) from error
