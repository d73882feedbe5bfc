"""Loops on several threads: as many as torch uses, each with outputs of its own."""

from __future__ import annotations

import os
import threading
from types import FunctionType
from typing import Any

import numba
import torch

from .jit import jit

__all__ = ["ParallelLoop"]

# The threads of numba do not survive a fork (with OpenMP it ends a process that asks for them), so
# that a forked process works on its only one.
_PROCESS = os.getpid()
# Where numba finds neither OpenMP nor TBB, only one thread at a time may ask for others.
_ONE_AT_A_TIME = threading.Lock()


class ParallelLoop:
    """A compiled loop over numbers that is cut into parts.

    The threads are those of numba, as many as torch uses and numba allows. Starting them takes
    2 us while they are awake; to hand a part to a thread of Python and to wait for it took 60 us
    on average, most of it for the interpreter's lock, and seven layers of SmolLM2 gained nothing
    from a second core (a step of 26 ms a block; 21 ms this way). The result must not depend on
    where the cuts are.

    Args:
        function: called with some arguments, the size and the number of parts. It loops over
            ``prange(parts)``, and part ``i`` works on the numbers from ``size * i // parts`` up
            to ``size * (i + 1) // parts``; what it allocates, it allocates there.

    Example:
        >>> import numpy as np
        >>> from numba import prange
        >>> from pvopt_kernels.cpu._compiled.parallel import ParallelLoop
        >>> def fill(out, value, size, parts):
        ...     for part in prange(parts):
        ...         for n in range(size * part // parts, size * (part + 1) // parts):
        ...             out[n] = value
        >>> out = np.zeros(4)
        >>> ParallelLoop(fill)(out, 2.0, size=3)
        >>> out.tolist()
        [2.0, 2.0, 2.0, 0.0]
    """

    def __init__(self, function: FunctionType) -> None:
        self._alone = jit(function)
        # Machine code is kept by the function's name: two ways to compile one need two names.
        copy = FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
        copy.__qualname__ = f"{function.__qualname__}.threads"
        self._threads = jit(copy, parallel=True)

    def __call__(self, *arguments: Any, size: int, least: int = 1) -> None:
        """Run the loop.

        Args:
            arguments: of the function.
            size: how many numbers.
            least: numbers that make another thread worth its start: 8 to 10 us of work, as measured
                on two cores.
        """
        threads = torch.get_num_threads()
        parts = min(threads, size // least)
        if parts <= 1 or os.getpid() != _PROCESS:
            self._alone(*arguments, size, 1)
            return
        with _ONE_AT_A_TIME:
            before = numba.get_num_threads()
            numba.set_num_threads(min(parts, before))
            try:
                self._threads(*arguments, size, parts)
            finally:
                numba.set_num_threads(before)
                # numba's first start of its threads makes torch use as many as there are cores.
                if torch.get_num_threads() != threads:
                    torch.set_num_threads(threads)
