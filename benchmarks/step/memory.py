"""Memory that an optimizer needs beside parameters and gradients."""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_allocated", "peak_beyond"]

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


def peak_allocated(work: Callable[[], object]) -> int:
    """Return by how many bytes the tensors on the CPU grow at their peak while some work runs.

    The same in every run, and without what the C library keeps of freed memory.

    Args:
        work: any.

    Example:
        >>> import torch
        >>> peak_allocated(lambda: (torch.ones(1000) + 1).sum()) // 1000
        8
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    recorder: Any = seen.profiler  # what it has recorded has no declared types
    events = recorder.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    alive = itertools.accumulate(size for _, size in sorted(changes, key=itemgetter(0)))
    return max(alive, default=0)
