"""Random cases that contain the edge cases: c > d, equal values, unused values, low rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pvopt.convex import (
    Point,
    Problem,
    random_least_squares,
    random_logistic,
    random_quadratic,
)

KINDS = ("quadratic", "least squares", "logistic")
Case = tuple[Problem, Point, np.random.Generator]


def draw_problem(kind: str, dimension: int, generator: np.random.Generator) -> Problem:
    condition = 10 ** generator.uniform(0, 4)
    if kind == "quadratic":
        return random_quadratic(dimension, condition, generator)
    if kind == "least squares":  # about half of them rank-deficient
        samples = int(generator.integers(1, 2 * dimension + 1))
        return random_least_squares(samples, dimension, condition, generator)
    return random_logistic(20, dimension, min(condition, 100.0), 0.1, generator)


@pytest.fixture(scope="session")
def draw_case() -> Callable[..., Case]:
    """Return a function from a seed to a problem and a messy point of its feasible set."""

    def draw(seed: int, *, kinds: Sequence[str] = KINDS, most_d: int = 6, most_c: int = 7) -> Case:
        generator = np.random.default_rng(seed)
        dimension = int(generator.integers(1, most_d + 1))
        num_values = int(generator.integers(1, most_c + 1))
        problem = draw_problem(str(generator.choice(kinds)), dimension, generator)
        codes = generator.integers(num_values, size=dimension)  # some values may be unused
        values = generator.standard_normal(num_values)
        if num_values > 1 and generator.random() < 0.3:
            values[1] = values[0]
        return problem, Point(codes, values), generator

    return draw


@pytest.fixture(scope="session")
def tolerance() -> Callable[..., float]:
    """Return a function giving the rounding error allowed in an objective."""

    def allowed(problem: Problem, *points: Point) -> float:
        # Terms of size L ||x||^2 cancel in the objective of an ill-conditioned problem.
        sizes = [float(np.square(point.weights).sum(-1).max()) for point in points]
        return 1e-11 * (1 + problem.smoothness * (1 + max(sizes, default=0.0)))

    return allowed
