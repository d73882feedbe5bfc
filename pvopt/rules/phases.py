"""Schedules: which of the two half steps of PV run in a given optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Alternate", "Phases", "Schedule", "Simultaneous"]


class Phases(NamedTuple):
    """Which half steps run: ``values`` (P step) and ``codes`` (V step)."""

    values: bool
    codes: bool


class Schedule(ABC):
    """Decide by the number of a step which half steps run in it."""

    @abstractmethod
    def phases(self, step: int) -> Phases:
        """Return the half steps of step number ``step`` (from 0)."""


@dataclass(frozen=True)
class Simultaneous(Schedule):
    """Run both half steps in every step, the P step first.

    Example:
        >>> Simultaneous().phases(7)
        Phases(values=True, codes=True)
    """

    def phases(self, step: int) -> Phases:
        """Both."""
        return Phases(values=True, codes=True)


@dataclass(frozen=True)
class Alternate(Schedule):
    """Run ``p`` steps on the values alone, then ``v`` steps on the codes alone, and so on.

    With a buffer the latent weights collect the base optimizer's updates in all of them.

    Args:
        p: number of consecutive P steps.
        v: number of consecutive V steps.

    Raises:
        ValueError: unless both are positive integers.

    Example:
        >>> [Alternate(2, 1).phases(step).codes for step in range(4)]
        [False, False, True, False]
    """

    p: int
    v: int

    def __post_init__(self) -> None:
        for name, count in (("p", self.p), ("v", self.v)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a positive int, got {count!r}")

    def phases(self, step: int) -> Phases:
        """Values in the first ``p`` steps of each period, codes in the others."""
        in_p = step % (self.p + self.v) < self.p
        return Phases(values=in_p, codes=not in_p)
