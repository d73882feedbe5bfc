"""Threads for compiled loops: as many as torch uses, each with outputs of its own."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["for_each_part"]


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="pvopt_kernels")


# A forked process has the pool's object without its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


def for_each_part(work: Callable[[int, int], object], size: int, least: int = 1) -> None:
    """Split ``0 .. size - 1`` into one run of numbers per thread and work on each.

    The threads are plain ones, so nothing spins beside torch's own; starting work on another
    thread takes about 20 us. The result must not depend on where the runs are cut.

    Args:
        work: called with the first number and the one past the last; releases the lock.
        size: how many numbers.
        least: numbers that make another thread worth its start.

    Example:
        >>> seen = []
        >>> for_each_part(lambda start, stop: seen.extend(range(start, stop)), 5)
        >>> sorted(seen)
        [0, 1, 2, 3, 4]
    """
    parts = max(1, min(torch.get_num_threads(), size // max(1, least)))
    cuts = [size * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, size)
        return
    pool = _pool(parts - 1)
    others = [pool.submit(work, cuts[i], cuts[i + 1]) for i in range(1, parts)]
    work(cuts[0], cuts[1])
    for other in others:
        other.result()
