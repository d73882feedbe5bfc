"""Phases: which of the two half steps of PV run in a given optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Alternate", "HalfSteps", "Phases", "Simultaneous"]


class HalfSteps(NamedTuple):
    """Which half steps run: ``values`` (P step) and ``codes`` (V step)."""

    values: bool
    codes: bool


class Phases(ABC):
    """Decide by the number of a step which half steps run in it."""

    @abstractmethod
    def at(self, step: int) -> HalfSteps:
        """Return the half steps of step number ``step`` (from 0)."""


@dataclass(frozen=True)
class Simultaneous(Phases):
    """Run both half steps in every step, the P step first.

    Example:
        >>> from pvopt import Simultaneous
        >>> Simultaneous().at(7)
        HalfSteps(values=True, codes=True)
    """

    def at(self, step: int) -> HalfSteps:
        return HalfSteps(values=True, codes=True)


@dataclass(frozen=True, kw_only=True)
class Alternate(Phases):
    """Run ``p`` steps on the values alone, then ``v`` steps on the codes alone, and so on.

    With a buffer the latent weights collect the base optimizer's updates in all of them.

    Args:
        p: number of consecutive P steps.
        v: number of consecutive V steps.

    Raises:
        ValueError: unless both are positive integers.

    Example:
        >>> from pvopt import Alternate
        >>> [Alternate(p=2, v=1).at(step).codes for step in range(4)]
        [False, False, True, False]
    """

    p: int
    v: int

    def __post_init__(self) -> None:
        for name, count in (("p", self.p), ("v", self.v)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a positive int, got {count!r}")

    def at(self, step: int) -> HalfSteps:
        in_p = step % (self.p + self.v) < self.p
        return HalfSteps(values=in_p, codes=not in_p)
