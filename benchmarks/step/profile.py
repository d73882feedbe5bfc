"""Where the time of a step goes."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

from torch.optim import AdamW, Optimizer

from benchmarks.timing import CLOCKS
from pvopt import Nearest, optimizer
from pvopt.parametrizations.codebooks import Codebooks
from pvopt.rules.value_optimizers import AdamValues

__all__ = ["PARTS", "REST", "parts_of"]

# What is timed, where it is found, and the bytes per weight that it must at least move in float32.
PARTS: dict[str, tuple[Any, str, float]] = {
    "values' gradients are finite": (optimizer, "check_finite", 0.04),
    "base step (fused AdamW)": (AdamW, "step", 28),
    "gradient of the values": (Codebooks, "pull", 4.25),
    "Adam on the values": (AdamValues, "move_", 0),
    "moments of the values": (AdamValues, "remember_", 0),
    "norms of the groups, selection": (Codebooks, "largest_changes", 4.25),
    "search of 1 % of the groups": (Nearest, "propose", 0),
    "writing the weights": (Codebooks, "write_into", 4.25),
}
REST = "the rest"


class _Clocks:
    """Times functions, each without what is timed inside it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a clock around it."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            began = self.clock()
            try:
                return function(*arguments, **options)
            finally:
                spent = self.clock() - began
                self.seconds[part] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return run


def parts_of(optimizer: Optimizer, *, steps: int, clock: str) -> dict[str, float]:
    """Return the mean seconds per step of each part, and of the rest.

    Args:
        optimizer: has taken a step before.
        steps: how many to take.
        clock: ``wall`` or ``cpu``.
    """
    clocks = _Clocks(CLOCKS[clock])
    with ExitStack() as patches:
        for part, (owner, name, _) in PARTS.items():
            timed = clocks.timed(part, getattr(owner, name))
            patches.enter_context(mock.patch.object(owner, name, timed))
        began = clocks.clock()
        for _ in range(steps):
            optimizer.step()
        whole = clocks.clock() - began
    rest = whole - sum(clocks.seconds.values())
    found = {**clocks.seconds, REST: rest}
    return {part: value / steps for part, value in found.items()}
