"""Memory that an optimizer needs beside parameters and gradients."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

__all__ = ["peak_beyond"]

_STATUS = Path("/proc/self/status")


def _resident(field: str) -> int:
    """Return a size that Linux keeps for this process, in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"no {field} in {_STATUS}")


def peak_beyond(work: Callable[[], object]) -> int | None:
    """Return by how many bytes resident memory grows at its peak while some work runs.

    Args:
        work: has run once before on small inputs, so that no code is loaded here.

    Returns:
        Bytes, or None where the system does not tell.
    """
    if not _STATUS.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # free memory must not serve the work uncounted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at the present size
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before
