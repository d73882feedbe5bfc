"""How hard a search and a fit try: no part of a format, so no part of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pvopt.core.registry import Registry
from pvopt.core.validation import check_integer

__all__ = ["OPTIONS", "FitOptions", "SearchOptions"]

#: Options by name: settings of starts hold them.
OPTIONS: Registry[Any] = Registry("options")


@OPTIONS.register()
@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How hard the V step's search tries; given to the optimizer and to calibrated starts.

    Args:
        beam_size: combinations that a search of several codes keeps between them; None for the
            parametrization's usual number. Exact searches have no use for it.
        window: weights of a group that may change in one step, for groups whose codes are a
            sequence (:class:`pvopt.Trellis`); None for all. The window lies where a group is
            farthest from its target.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if one is out of range.

    Example:
        >>> from pvopt import SearchOptions
        >>> SearchOptions(beam_size=8)
        SearchOptions(beam_size=8, window=None)
    """

    beam_size: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.beam_size is not None:
            check_integer("beam_size", self.beam_size, 1, 1024)
        if self.window is not None:
            check_integer("window", self.window, 1, 1 << 16)


@OPTIONS.register()
@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How hard a start without data tries.

    Args:
        iterations: rounds of codes and values after the first guess; None for the
            parametrization's usual number.
        beam_size: combinations that the last search keeps; None for the usual number.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if one is out of range.

    Example:
        >>> from pvopt import FitOptions
        >>> FitOptions(iterations=0)
        FitOptions(iterations=0, beam_size=None)
    """

    iterations: int | None = None
    beam_size: int | None = None

    def __post_init__(self) -> None:
        if self.iterations is not None:
            check_integer("iterations", self.iterations, 0, 1000)
        if self.beam_size is not None:
            check_integer("beam_size", self.beam_size, 1, 1024)
