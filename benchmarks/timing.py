"""Competing implementations, timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CLOCKS", "Timing", "in_turns"]

# On a machine with other work CPU time says more; it adds up the threads, so it is for one.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Timing:
    """Seconds of one implementation.

    Args:
        median_s: the median run.
        low_s: the lower quartile.
        high_s: the upper quartile.
        repeats: number of runs.
    """

    median_s: float
    low_s: float
    high_s: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Return the statistics of some runs.

        Example:
            >>> Timing.of([3.0, 1.0, 2.0]).median_s
            2.0
        """
        ordered = sorted(seconds)
        quarter = (len(ordered) - 1) // 4
        return cls(
            statistics.median(ordered), ordered[quarter], ordered[-1 - quarter], len(ordered)
        )


def in_turns(
    competitors: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 20,
    limit_s: float = 60.0,
    clock: str = "wall",
    pause_s: float = 0.0,
) -> dict[str, Timing]:
    """Run each implementation once per round, so that what disturbs one disturbs all.

    A library's threads go on spinning for some time when their work is done, where the next
    library's would run: the product of ``aqlm`` leaves OpenBLAS's threads awake, and what takes
    1.3 ms before it takes 5.6 behind it. A pause lets them sleep.

    Args:
        competitors: functions by name; each has run before, so nothing is compiled here.
        repeats: rounds.
        limit_s: a competitor that has used up so many seconds sits out after five runs.
        clock: ``wall`` or ``cpu``.
        pause_s: seconds without work before each turn; then one that is shorter runs untimed for
            a quarter of that, so that its own threads are awake and its data is in the caches.

    Returns:
        Timings by name.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(repeats):
        for name, run in competitors.items():
            if sum(seconds[name]) > limit_s and len(seconds[name]) >= 5:
                continue
            if pause_s:
                time.sleep(pause_s)
            quick = min(seconds[name], default=0.0) < pause_s
            awake = time.perf_counter()
            while quick and time.perf_counter() - awake < pause_s / 4:
                run()
            began = now()
            run()
            seconds[name].append(now() - began)
    return {name: Timing.of(values) for name, values in seconds.items()}
