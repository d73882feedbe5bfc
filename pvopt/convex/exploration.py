"""Exploration: leave a limit point of PV and come back with a better one, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .methods import Method
from .points import Point
from .problems import Problem
from .trajectory import Trajectory, concatenate

__all__ = ["Exploration"]


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """Perturb the codes of the best point, run a method to its limit, keep the better point.

    A limit point of PV is optimal in the values for its codes and in the codes for its values,
    not in both together. A few random codes lead out of it; the guard on the best point so far
    keeps every report monotone.

    Args:
        method: what runs between perturbations.
        rounds: how many perturbations follow the first run.
        changes: how many coordinates, drawn uniformly, get a random code in each perturbation.

    Raises:
        ValueError: for negative rounds or fewer than one change.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Exploration, Gain, random_quadratic, random_start, recipes
        >>> generator = np.random.default_rng(0)
        >>> problem = random_quadratic(6, 100.0, generator)
        >>> start = random_start(6, 3, generator)
        >>> local = recipes.subspace_pv(Gain())
        >>> alone = local.run(problem, start)
        >>> run = Exploration(method=local, rounds=20).run(problem, start, generator=generator)
        >>> bool(run.is_monotone()), bool(run.objective[-1] < alone.objective[-1])
        (True, True)

    References:
        PV-Tuning (arXiv 2405.14852), limitations: limit points are not global optima. Lourenco,
        Martin and Stutzle (2003), "Iterated local search".
    """

    method: Method
    rounds: int = 20
    changes: int = 3

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, got {self.rounds}")
        if self.changes < 1:
            raise ValueError(f"changes must be at least 1, got {self.changes}")

    def run(
        self,
        problem: Problem,
        start: Point,
        *,
        generator: np.random.Generator,
        iterations: int = 100,
    ) -> Trajectory:
        """Run all rounds.

        Args:
            problem: the objective.
            start: codes ``(..., d)`` and values ``(..., c)``.
            generator: source of the perturbations and of the method's own draws.
            iterations: limit of iterations per round.

        Returns:
            One guarded trajectory; its last point is the best of all, its objective never rises.
        """
        history = self.method.run(problem, start, iterations=iterations, generator=generator)
        history = history.guarded()
        for _ in range(self.rounds):
            left = self._perturb(history.final, generator)
            part = self.method.run(problem, left, iterations=iterations, generator=generator)
            history = concatenate([history, part]).guarded()
        return history

    def _perturb(self, point: Point, generator: np.random.Generator) -> Point:
        changes = min(self.changes, point.codes.shape[-1])
        where = np.argsort(generator.random(point.codes.shape), axis=-1)[..., :changes]
        codes: NDArray[np.int64] = point.codes.copy()
        drawn = generator.integers(point.num_values, size=where.shape)
        np.put_along_axis(codes, where, drawn, axis=-1)
        return Point(codes, point.values)
