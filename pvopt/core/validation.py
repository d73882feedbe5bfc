"""Checks that settings share; every message names the argument and what is allowed."""

from __future__ import annotations

import math

__all__ = ["check_bool", "check_integer", "check_number"]


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """Raise unless ``value`` is an integer in ``low .. high``.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is out of range.

    Example:
        >>> from pvopt.core.validation import check_integer
        >>> check_integer("bits", 9, 1, 8)
        Traceback (most recent call last):
        ...
        ValueError: bits must be in 1..8, got 9
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, got {value}")


def check_bool(name: str, value: object) -> None:
    """Raise a TypeError unless ``value`` is a bool.

    Example:
        >>> from pvopt.core.validation import check_bool
        >>> check_bool("symmetric", 1)
        Traceback (most recent call last):
        ...
        TypeError: symmetric must be a bool, got 1
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")


def check_number(name: str, value: object, low: float, *, above: bool = False) -> None:
    """Raise unless ``value`` is a finite number of at least ``low``.

    Args:
        name: of the setting, for the message.
        value: to be checked.
        low: the least value.
        above: whether ``low`` itself is excluded.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not finite or too small.

    Example:
        >>> from pvopt.core.validation import check_number
        >>> check_number("lr", -0.1, 0.0, above=True)
        Traceback (most recent call last):
        ...
        ValueError: lr must be above 0 and finite, got -0.1
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < low or (above and value == low):
        bound = "above" if above else "at least"
        raise ValueError(f"{name} must be {bound} {low:g} and finite, got {value}")
