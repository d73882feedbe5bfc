"""The folders of runs and checkpoints on the command line: what may be written where."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pvopt.formats import FORMATS, CheckpointError, check_place
from pvopt.formats.locks import locked
from pvopt.formats.places import check_room

from .records import RECORDS

__all__ = [
    "check_checkpoint_folder",
    "check_run_folder",
    "delete_run",
    "find_checkpoint",
    "holds_run",
]

# What a run writes into its folder, and what the writer of its checkpoint leaves there.
_BESIDE = ".checkpoint."
_RUN_FILES = ("checkpoint", ".checkpoint.previous", RECORDS, "tensorboard")


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint at a path: the folder itself, or ``checkpoint`` in a run's folder.

    Args:
        path: of a checkpoint or of a run.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.tuning import find_checkpoint
        >>> run = Path(tempfile.mkdtemp())
        >>> (run / "checkpoint").mkdir()
        >>> find_checkpoint(run).name
        'checkpoint'
    """
    path = Path(path)
    inside = path / "checkpoint"
    aside = path / ".checkpoint.previous"  # left there by a writer that was killed
    return inside if inside.is_dir() or aside.is_dir() else path


def holds_run(folder: str | Path) -> bool:
    """Tell whether a folder holds a run, finished or not.

    Example:
        >>> import tempfile
        >>> from pvopt.tuning import holds_run
        >>> holds_run(tempfile.mkdtemp())
        False
    """
    return any(os.path.lexists(Path(folder) / name) for name in _RUN_FILES)


def delete_run(folder: str | Path) -> None:
    """Delete the run in a folder, if there is one, and nothing else.

    Raises:
        CheckpointError: if it is still going on, or cannot be deleted.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.tuning import delete_run, holds_run
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "metrics.jsonl").touch()
        >>> (folder / "notes.txt").touch()
        >>> delete_run(folder)
        >>> holds_run(folder), (folder / "notes.txt").exists()
        (False, True)
    """
    folder = Path(folder)
    if not holds_run(folder):
        return
    with locked(folder / ".lock", "another run"):
        try:
            for found in [*(folder / name for name in _RUN_FILES), *folder.glob(f"{_BESIDE}*")]:
                if found.is_dir() and not found.is_symlink():
                    shutil.rmtree(found)
                else:
                    found.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder}: the run cannot be deleted ({error})") from error


def check_run_folder(
    folder: str | Path, *, overwrite: bool = False, checkpoint: str | Path | None = None
) -> None:
    """Raise unless a new run may write to a folder.

    Args:
        folder: the place.
        overwrite: whether a run that is there already may be deleted.
        checkpoint: the folder that the run starts from, if it does; it is never written to.

    Raises:
        ValueError: if the folder holds a run already, is a checkpoint itself, is no folder, or
            nothing can be written there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.tuning import check_run_folder
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "metrics.jsonl").touch()
        >>> check_run_folder(folder)
        Traceback (most recent call last):
        ...
        ValueError: ... holds a run already: resume it, overwrite it or choose another folder
    """
    folder = _folder(folder)
    if checkpoint is not None and folder.exists():
        source = find_checkpoint(checkpoint)
        if source.exists() and any(folder.samefile(own) for own in (source, checkpoint)):
            raise ValueError(f"{folder} holds the checkpoint to start from: choose another folder")
    if _is_checkpoint(folder):
        raise ValueError(f"{folder} is a checkpoint: choose another folder for the run")
    if holds_run(folder) and not overwrite:
        raise ValueError(
            f"{folder} holds a run already: resume it, overwrite it or choose another folder"
        )
    check_room(folder / RECORDS)


def check_checkpoint_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise unless a new checkpoint may be written to a folder.

    Args:
        folder: the place.
        overwrite: whether a checkpoint or a run that is there already may be deleted.

    Raises:
        ValueError: if the folder holds something else, or a checkpoint or a run already.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.tuning import check_checkpoint_folder
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "metrics.jsonl").touch()
        >>> check_checkpoint_folder(folder)
        Traceback (most recent call last):
        ...
        ValueError: ... holds a run already: overwrite it or choose another folder
    """
    folder = _folder(folder)
    run = holds_run(folder)
    if not run:
        check_place(folder)
    if (run or _is_checkpoint(folder)) and not overwrite:
        raise ValueError(
            f"{folder} holds a {'run' if run else 'checkpoint'} already: overwrite it or choose "
            "another folder"
        )
    if not run:
        return
    known = {".lock", *_RUN_FILES}
    others = [n for n in os.listdir(folder) if n not in known and not n.startswith(_BESIDE)]
    if others:
        shown = ", ".join(sorted(others)[:5])
        raise ValueError(f"{folder} holds more than a run ({shown}): choose another folder")


def _folder(folder: str | Path) -> Path:
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{folder} must be a folder, found a file")
    if not path.exists():
        check_place(path)
    return path


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / marker).exists() for marker in FORMATS.markers)
