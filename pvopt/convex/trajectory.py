"""The record of a run: every half step, and what can be said about the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .points import Point

__all__ = ["StopReason", "Trajectory", "concatenate"]

StopReason = Literal["fixed point", "iteration limit"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Every half step of one or several runs: the start, then P, V, P, V, ...

    Axes: ``h`` half steps (the start is number 0), ``k`` iterations, ``...`` independent runs.

    Args:
        objective: ``(h, ...)`` float64.
        codes: ``(h, ..., d)`` int64.
        values: ``(h, ..., c)`` float64.
        smoothness: ``(k, ...)`` float64, the L or L_S each V step used; nan where none.
        certificate_gap: ``(k, ...)`` float64, 0 for V steps proven optimal; nan where none.
        stop_reason: ``"fixed point"`` if the last iteration changed no run of a deterministic
            method, else ``"iteration limit"``.
        iterations: ``(...)`` int64, the last iteration that changed the run's weights or buffer.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Point, Quadratic, recipes
        >>> start = Point(np.array([0, 0, 1]), np.array([0.0, 1.0]))
        >>> run = recipes.exact_pv().run(Quadratic(np.eye(3), np.array([0.0, 3.0, 4.0])), start)
        >>> run.weights[-1].tolist(), run.stop_reason
        ([0.0, 3.5, 3.5], 'fixed point')

    References:
        PV-Tuning (arXiv 2405.14852), the PV algorithm: the iterates x and y.
    """

    objective: NDArray[np.float64]
    codes: NDArray[np.int64]
    values: NDArray[np.float64]
    smoothness: NDArray[np.float64]
    certificate_gap: NDArray[np.float64]
    stop_reason: StopReason
    iterations: NDArray[np.int64]

    @property
    def weights(self) -> NDArray[np.float64]:
        """Dense iterates ``(h, ..., d)``."""
        return np.take_along_axis(self.values, self.codes, axis=-1)

    @property
    def final(self) -> Point:
        """The last point of every run."""
        return self.point(-1)

    def point(self, half_step: int) -> Point:
        """Return the point after a half step."""
        return Point(self.codes[half_step], self.values[half_step])

    @property
    def decreases(self) -> NDArray[np.float64]:
        """How much each half step lowered the objective, ``(h - 1, ...)``; P steps first."""
        return -np.diff(self.objective, axis=0)

    def is_monotone(self, *, tolerance: float = 1e-10) -> NDArray[np.bool_]:
        """Return whether no half step raised the objective, per run, up to relative rounding."""
        scale = 1 + np.abs(self.objective).max(0)
        return (self.decreases >= -tolerance * scale).all(0)

    def guarded(self) -> Trajectory:
        """Return the run as seen by someone who keeps the best point so far.

        Every report then lowers the objective or repeats it, whatever the method does underneath.

        Example:
            >>> import numpy as np
            >>> from pvopt.convex import KeepValues, Point, Quadratic, recipes
            >>> start = Point(np.array([0, 0]), np.array([0.0, 1.0]))
            >>> problem = Quadratic(np.eye(2), np.array([0.25, 0.375]))
            >>> run = recipes.ste(p_step=KeepValues()).run(problem, start, iterations=8)
            >>> bool(run.is_monotone()), bool(run.guarded().is_monotone())
            (False, True)
        """
        steps = np.arange(len(self.objective)).reshape(-1, *[1] * (self.objective.ndim - 1))
        improved = np.ones(self.objective.shape, dtype=bool)
        improved[1:] = self.objective[1:] < np.minimum.accumulate(self.objective)[:-1]
        best = np.maximum.accumulate(np.where(improved, steps, 0))
        return Trajectory(
            np.take_along_axis(self.objective, best, 0),
            np.take_along_axis(self.codes, best[..., None], 0),
            np.take_along_axis(self.values, best[..., None], 0),
            self.smoothness,
            self.certificate_gap,
            self.stop_reason,
            self.iterations,
        )


def concatenate(parts: Sequence[Trajectory]) -> Trajectory:
    """Return runs that follow one another as one; the starts after the first are left out.

    Args:
        parts: at least one trajectory, all of the same runs.

    Returns:
        One trajectory with the stop reason of the last part.

    Raises:
        ValueError: without any part.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Point, Quadratic, concatenate, recipes
        >>> problem, start = Quadratic(np.eye(2), np.ones(2)), Point(np.array([0, 0]), np.zeros(1))
        >>> part = recipes.linearized_pv().run(problem, start)
        >>> len(concatenate([part, part]).objective) == 2 * len(part.objective) - 1
        True
    """
    if not parts:
        raise ValueError("parts must hold at least one trajectory")
    later = parts[1:]
    done = np.cumsum([0, *(len(part.smoothness) for part in parts)])
    iterations = parts[0].iterations
    for offset, part in zip(done[1:], later, strict=False):
        iterations = np.where(part.iterations > 0, offset + part.iterations, iterations)
    return Trajectory(
        np.concatenate([parts[0].objective, *(part.objective[1:] for part in later)]),
        np.concatenate([parts[0].codes, *(part.codes[1:] for part in later)]),
        np.concatenate([parts[0].values, *(part.values[1:] for part in later)]),
        np.concatenate([part.smoothness for part in parts]),
        np.concatenate([part.certificate_gap for part in parts]),
        parts[-1].stop_reason,
        iterations,
    )
