"""Locks between processes: one writer at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import CheckpointError

__all__ = ["locked"]


@contextmanager
def locked(file: str | Path, holder: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock that other processes and threads respect; it ends with the process.

    Args:
        file: the lock; it is made if it does not exist, and stays. Its folder must exist.
        holder: who else may hold it, for the message.
        wait: seconds to wait for another holder.

    Raises:
        CheckpointError: if the lock is held, or cannot be made.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.locks import locked
        >>> lock = Path(tempfile.mkdtemp()) / ".lock"
        >>> with locked(lock, "a run"), locked(lock, "a run"):
        ...     pass
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...lock: a run is writing here; wait until it ends
    """
    lock = FileLock(str(file), timeout=wait, thread_local=False)
    try:
        # Where a file cannot be made, such as in /proc, FileLock would wait to the end.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644))
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(f"{file}: {holder} is writing here; wait until it ends") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be locked ({error})") from error
    try:
        yield
    finally:
        lock.release()
