"""How the inner loops are compiled: without the interpreter lock, and once per machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["jit"]


# Loops over prange become parallel and nothing else does.
_PRANGE = {
    "prange": True, "comprehension": False, "fusion": False, "inplace_binop": False,
    "numpy": False, "reduction": False, "setitem": False, "stencil": False,
}  # fmt: skip


def jit(function: Callable[..., Any], *, parallel: bool = False) -> Callable[..., Any]:
    """Compile a function on its first call and keep the machine code on disk.

    A kernel compiles in one to four seconds and loads in 0.1. numba keeps the code beside the
    source, else in the user's cache folder, or where ``NUMBA_CACHE_DIR`` says. Where nothing of
    that can be written, every process compiles anew.

    Args:
        function: of arrays and numbers; it must not call functions of other modules that change
            without this one (the cache does not see that), so kernels call
            :mod:`.vectors`, :mod:`.byte_tables` and :mod:`.byte_products` only.
        parallel: whether loops over ``prange`` run on several threads.

    Example:
        >>> import numpy as np
        >>> from pvopt_kernels.cpu._compiled.jit import jit
        >>> jit(lambda x: x.sum())(np.ones(3))
        3.0
    """
    # error_model: division by zero gives infinity, as in torch, and loops stay free of branches.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if parallel:
        options["parallel"] = _PRANGE
    try:
        return numba.njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # no folder to keep it in
        return numba.njit(**options)(function)
