"""Folders that are replaced as a whole: whatever happens, a complete one can be found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .errors import CheckpointError
from .locks import locked
from .places import absolute, check_replaceable

__all__ = ["complete_folder", "one_generation", "read_complete", "replaced_folder"]

Result = TypeVar("Result")

# A writer that waits longer than it takes to write tens of gigabytes waits for one that hangs.
_WAIT_SECONDS = 600.0


def _beside(folder: Path, suffix: str) -> Path:
    return folder.parent / f".{folder.name}.{suffix}"


def complete_folder(folder: str | Path) -> Path:
    """Return where the complete content of a folder lies.

    That is the folder itself, or, between the two renames of a writer, the previous content that
    it has moved aside. Nothing on the disk is changed.

    Args:
        folder: as given to ``replaced_folder``.

    Returns:
        An existing folder.

    Raises:
        CheckpointError: if there is none.

    Example:
        >>> import tempfile
        >>> from pvopt.formats import complete_folder
        >>> folder = tempfile.mkdtemp()
        >>> complete_folder(folder).samefile(folder)
        True
    """
    try:
        target = absolute(folder)
        # Where neither is there, a writer may have renamed between the two looks: look again. Each
        # further look is in vain only if one more complete save ran since.
        for candidate in (target, _beside(target, "previous")) * 4:
            if candidate.is_dir():
                return candidate
        found = "a file" if target.exists() else "nothing"
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error
    raise CheckpointError(f"{folder}: must be a checkpoint folder, found {found}")


def read_complete(folder: str | Path, read: Callable[[Path], Result]) -> Result:
    """Read a folder while others may replace it: again, if it was replaced and that went wrong.

    Args:
        folder: as given to ``replaced_folder``.
        read: is given an existing folder. What opens several files of it does so within
            ``one_generation``.

    Returns:
        What ``read`` returned.

    Raises:
        CheckpointError: if the folder does not exist or cannot be read.

    Example:
        >>> import tempfile
        >>> from pvopt.formats.folders import read_complete
        >>> read_complete(tempfile.mkdtemp(), lambda folder: sorted(folder.iterdir()))
        []
    """
    while True:
        path = complete_folder(folder)
        try:
            with _held(path) as in_place:
                try:
                    return read(path)
                except (CheckpointError, OSError):
                    if in_place():
                        raise
        except CheckpointError:
            raise
        except FileNotFoundError as error:  # the folder itself is gone again
            if path.is_dir():
                raise CheckpointError(f"{path}: cannot be read ({error})") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error


@contextmanager
def one_generation(folder: Path) -> Iterator[None]:
    """Make sure that all files that the block opens were written together.

    Raises:
        CheckpointError: at the end of the block, if another folder has taken the place since its
            beginning; ``read_complete`` then reads again.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.folders import one_generation
        >>> folder = Path(tempfile.mkdtemp()) / "x"
        >>> folder.mkdir()
        >>> with one_generation(folder):
        ...     folder.rmdir()
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...x: was replaced while it was read
    """
    with _held(folder) as in_place:
        yield
        if not in_place():
            raise CheckpointError(f"{folder}: was replaced while it was read")


@contextmanager
def _held(folder: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a folder is still the one in its place."""
    # While it is open, no other folder gets its number. Windows never gives a number twice.
    opened = None
    if hasattr(os, "O_DIRECTORY"):
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        before = os.stat(folder if opened is None else opened)

        def in_place() -> bool:
            try:
                return os.path.samestat(os.stat(folder), before)
            except FileNotFoundError:
                return False

        yield in_place
    finally:
        if opened is not None:
            os.close(opened)


@contextmanager
def replaced_folder(
    folder: str | Path, marker: str, foreign: Callable[[Path], Collection[str]] = lambda _: ()
) -> Iterator[Path]:
    """Give a fresh folder to write into, and put it in the place of the old one at the end.

    The new folder is written beside the old one, flushed to the disk with all its files, and
    swapped in by two renames: old aside, new in. If the block raises, the old one stays. Of several
    writers one waits for the other.

    Args:
        folder: the place to write to; parents are made.
        marker: name of a file that proves an existing folder to be ours.
        foreign: returns what else is in an existing folder of ours.

    Yields:
        An empty folder.

    Raises:
        CheckpointError: if something other than a folder of ours is in the place, or the disk is
            full, or a permission is lacking.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats import complete_folder
        >>> from pvopt.formats.folders import replaced_folder
        >>> place = Path(tempfile.mkdtemp()) / "state"
        >>> with replaced_folder(place, "mark") as new:
        ...     _ = (new / "mark").write_text("1")
        >>> complete_folder(place).name, (place / "mark").read_text()
        ('state', '1')
    """
    try:
        target = absolute(folder)
        partial, previous = _beside(target, "partial"), _beside(target, "previous")
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(_beside(target, "lock"), "another process", wait=_WAIT_SECONDS):
            check_replaceable(folder, marker, foreign)
            _remove(partial)  # of a writer that was killed
            try:
                partial.mkdir()
                yield partial
                _flush(partial)
                _swap(partial, target, previous)
            except BaseException:
                _remove(partial)
                raise
            _flush_directory(target.parent)
            _remove(previous)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error


def _swap(new: Path, target: Path, previous: Path) -> None:
    if target.exists():
        # A leftover beside a complete folder was to be deleted when its writer was killed.
        _remove(previous)
        os.rename(target, previous)
    try:
        os.rename(new, target)
    except BaseException:
        if previous.exists() and not target.exists():
            os.rename(previous, target)
        raise


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
