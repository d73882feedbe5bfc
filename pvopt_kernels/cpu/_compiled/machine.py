"""What the processor can do beyond what LLVM chooses by itself."""

from __future__ import annotations

import functools

from llvmlite import binding
from numba.core import config

__all__ = ["host_has"]


@functools.cache
def host_has(feature: str) -> bool:
    """Return whether machine code is for this very machine, and it has a feature.

    Args:
        feature: its name in LLVM.

    Example:
        >>> from pvopt_kernels.cpu._compiled.machine import host_has
        >>> host_has("teleportation")
        False
    """
    for_another = config.CPU_NAME or config.CPU_FEATURES  # type: ignore[attr-defined]
    return not for_another and bool(binding.get_host_cpu_features().get(feature))
