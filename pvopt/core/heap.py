"""Memory of a process that is free, and that the C library keeps all the same."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["release_free_memory"]


def release_free_memory() -> None:
    """Let the C library give back to the system what it keeps of freed memory.

    glibc returns a freed block at once where it lies at the end of its heap or is a large one;
    small tensors among others leave holes. Elsewhere nothing is done.

    Example:
        >>> from pvopt.core.heap import release_free_memory
        >>> release_free_memory()
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another system, another C library
        return None
