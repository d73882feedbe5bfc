"""Settings of an estimate, with the defaults in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ESTIMATORS", "UNITS", "SmoothnessSettings"]

ESTIMATORS = ("quotient", "power")
UNITS = ("coordinates", "groups")


@dataclass(frozen=True, kw_only=True)
class SmoothnessSettings:
    """Which constants are estimated, and with how much work.

    The work is about ``path_steps * draws * len(fractions)`` times two gradients for the
    quotients, and times the iterations that are needed (some 5 to 10) Hessian-vector products for
    the power iteration; a product costs about as much as two gradients.

    Args:
        fractions: shares of the coordinates (or groups) of every weight, each in (0, 1].
        estimators: ``quotient`` (gradients only, a lower estimate), ``power`` (Hessian-vector
            products, the local curvature), or both.
        path_steps: points of the gradient path at which the constants are estimated.
        draws: independent draws of random subsets; those of one draw are nested.
        units: what is drawn: ``coordinates``, or ``groups`` that share a code (needs
            :class:`~pvopt.QuantizedWeights`).
        iterations: most Hessian-vector products per constant, at least 2.
        tolerance: a power iteration stops when the constant grows by less than this, relatively;
            0: never before ``iterations``.
        probe: length of the very first step in a subspace, relative to the norm of the weights;
            it finds the length 1/L of the steps that count.

    Raises:
        ValueError: for a setting out of range.

    Example:
        >>> from pvopt.smoothness import SmoothnessSettings
        >>> SmoothnessSettings(fractions=(0.5, 1.5))
        Traceback (most recent call last):
        ...
        ValueError: fractions must be distinct numbers in (0, 1], got (0.5, 1.5)
    """

    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.85, 1.0)
    estimators: tuple[str, ...] = ESTIMATORS
    path_steps: int = 3
    draws: int = 1
    units: str = "coordinates"
    iterations: int = 20
    tolerance: float = 1e-3
    probe: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", tuple(self.fractions))
        object.__setattr__(self, "estimators", tuple(self.estimators))
        shares, names = self.fractions, self.estimators
        if not shares or not all(0 < f <= 1 for f in shares) or len({*shares}) < len(shares):
            raise ValueError(f"fractions must be distinct numbers in (0, 1], got {shares}")
        if len(shares) > 255:
            raise ValueError(f"fractions must be at most 255 numbers, got {len(shares)}")
        if not names or not {*names} <= {*ESTIMATORS} or len({*names}) < len(names):
            raise ValueError(f"estimators must be some of {ESTIMATORS}, got {names}")
        for name, least in (("path_steps", 1), ("draws", 1), ("iterations", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.units not in UNITS:
            raise ValueError(f"units must be one of {UNITS}, got {self.units!r}")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}")
        if not 0 < self.probe < 1:
            raise ValueError(f"probe must be in (0, 1), got {self.probe}")
