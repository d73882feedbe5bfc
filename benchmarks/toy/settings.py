"""Problems and starts of the toy benchmark, all seeded, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.toy.lineup import Scale
from pvopt.convex import (
    Point,
    Problem,
    Quadratic,
    global_optimum,
    random_logistic,
    random_quadratic,
    random_start,
)

__all__ = ["Sizes", "logistic_setting", "paper_setting", "scale_of", "wide_setting"]


@dataclass(frozen=True)
class Sizes:
    """How much is run; ``quick`` is for a first look."""

    problems: int = 5
    starts: int = 50
    iterations: int = 100
    wide_starts: int = 10
    conditions: tuple[float, ...] = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
    logistic_starts: int = 20
    quick: bool = False

    @classmethod
    def of(cls, quick: bool) -> Sizes:
        """Return the full or the quick sizes."""
        if not quick:
            return cls()
        return cls(2, 20, 40, 3, (1e1, 1e3, 1e6), 5, True)


def paper_setting(number: int, num_values: int, starts: int) -> tuple[Quadratic, Point]:
    """Return random quadratic ``number`` of the paper's size, d = 6, and its starts."""
    problem = random_quadratic(6, 100.0, np.random.default_rng([number, 6]))
    generator = np.random.default_rng([number, num_values])
    return problem, random_start(6, num_values, generator, runs=starts)


def wide_setting(
    number: int, num_values: int, starts: int, condition: float = 100.0
) -> tuple[Quadratic, Point]:
    """Return a random quadratic of d = 24 and its starts."""
    generator = np.random.default_rng([number, 24])
    problem = random_quadratic(24, condition, generator)
    return problem, random_start(24, num_values, generator, runs=starts)


def logistic_setting(number: int, num_values: int, starts: int) -> tuple[Problem, Point]:
    """Return a logistic regression with 8 weights and 200 samples, and its starts."""
    generator = np.random.default_rng([number, 8])
    problem = random_logistic(200, 8, 30.0, 1e-3, generator)
    return problem, random_start(8, num_values, generator, runs=starts)


def scale_of(problem: Problem, num_values: int, *, enumerate_optimum: bool) -> Scale:
    """Return the gap scale of a problem: global optimum (or unconstrained) to best constant."""
    top = global_optimum(problem, 1).objective
    if enumerate_optimum:
        if num_values == 1:  # optimum and best constant coincide: measure against c = d instead
            return Scale(top, top + (top - global_optimum(problem, problem.dimension).objective))
        return Scale(global_optimum(problem, num_values).objective, top)
    origin = np.zeros(problem.dimension)
    free = np.asarray(
        np.linalg.solve(problem.hessian(origin), -problem.gradient(origin)), dtype=np.float64
    )
    return Scale(float(problem.value(free)), top)
