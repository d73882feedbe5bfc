"""Objectives: derivatives against differences, constants against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt.convex import (
    LeastSquares,
    Logistic,
    Point,
    Quadratic,
    random_least_squares,
    random_logistic,
    random_quadratic,
    random_start,
    restricted_smoothness,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=15, deadline=None)


@some
@given(seed=SEEDS)
def test_derivatives_match_central_differences(draw_case, seed):
    """The gradient and the Hessian are those of the value (definitions)."""
    problem, point, generator = draw_case(seed)
    x = point.weights + 0.1 * generator.standard_normal(problem.dimension)
    steps = 1e-5 * np.eye(problem.dimension)
    scale = 1 + problem.smoothness * (1 + np.abs(x).max())
    slope = (problem.value(x + steps) - problem.value(x - steps)) / 2e-5
    np.testing.assert_allclose(problem.gradient(x), slope, atol=1e-5 * scale)
    bend = (problem.gradient(x + steps) - problem.gradient(x - steps)) / 2e-5
    np.testing.assert_allclose(problem.hessian(x), bend, atol=1e-5 * scale)


@some
@given(seed=SEEDS)
def test_curvature_lies_above_every_hessian_and_strong_convexity_below(draw_case, seed):
    """The linearized V step rests on Hessian <= B <= L I (PV-Tuning, linearized V step)."""
    problem, point, generator = draw_case(seed)
    slack = 1e-9 * problem.smoothness
    for size in (0.0, 0.1, 10.0):
        x = point.weights + size * generator.standard_normal(problem.dimension)
        hessian = problem.hessian(x)
        assert np.linalg.eigvalsh(problem.curvature - hessian)[0] >= -slack
        assert np.linalg.eigvalsh(hessian)[0] >= problem.strong_convexity - slack
    top = np.linalg.eigvalsh(problem.smoothness * np.eye(problem.dimension) - problem.curvature)
    assert abs(top[0]) <= slack  # L is the least constant above B


@some
@given(seed=SEEDS)
def test_leading_axes_are_independent_runs(draw_case, seed):
    """A batch gives what its rows give alone."""
    problem, _, generator = draw_case(seed)
    batch = generator.standard_normal((3, 2, problem.dimension))
    for method in (problem.value, problem.gradient):
        together = method(batch)
        alone = np.stack([np.stack([method(x) for x in row]) for row in batch])
        np.testing.assert_allclose(together, alone, rtol=1e-10, atol=1e-12)
    hessians = np.broadcast_to(problem.hessian(batch), (*batch.shape, problem.dimension))
    np.testing.assert_allclose(hessians[2, 1], problem.hessian(batch[2, 1]), rtol=1e-10)


@some
@given(seed=SEEDS, size=st.integers(1, 8))
def test_restricted_smoothness_is_below_l_and_monotone(seed, size):
    """L_S <= L, and S inside T gives L_S <= L_T (PV-Tuning, subspace V step; interlacing)."""
    generator = np.random.default_rng(seed)
    problem = random_quadratic(8, 1e4, generator)
    order = generator.permutation(8)
    chain = [float(restricted_smoothness(problem.A, order[:m])) for m in range(1, 9)]
    assert all(a <= b * (1 + 1e-10) for a, b in itertools.pairwise(chain))
    assert chain[-1] == pytest.approx(problem.smoothness)
    block = problem.A[np.ix_(order[:size], order[:size])]
    direction = generator.standard_normal(size)
    rayleigh = direction @ block @ direction / (direction @ direction)
    assert rayleigh <= chain[size - 1] * (1 + 1e-10)


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e6])
def test_generators_have_the_condition_number_asked_for(condition):
    generator = np.random.default_rng(0)
    quadratic = random_quadratic(7, condition, generator)
    assert quadratic.smoothness / quadratic.strong_convexity == pytest.approx(condition, rel=1e-6)
    values = np.linalg.eigvalsh(random_least_squares(4, 7, condition, generator).curvature)
    assert values[-1] / values[3] == pytest.approx(condition, rel=1e-6)
    assert abs(values[2]) < 1e-10 * values[-1]
    assert random_logistic(30, 7, condition, 0.0, generator).strong_convexity == 0


def test_generators_repeat_and_differ():
    one, same, other = (random_quadratic(3, 9.0, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one.A, same.A)
    assert not np.array_equal(one.A, other.A)


def test_random_start_uses_every_value():
    start = random_start(6, 6, np.random.default_rng(0), runs=20)
    assert (np.sort(start.codes, axis=-1) == np.arange(6)).all()
    wide = random_start(3, 5, np.random.default_rng(0), runs=20)
    assert wide.values.shape == (20, 5)
    assert (np.sort(wide.codes, axis=-1) == np.arange(3)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Quadratic(np.ones((2, 3)), np.ones(2)), "A must be square"),
        (lambda: Quadratic(np.eye(2), np.ones(3)), "b must have shape"),
        (lambda: Quadratic(np.zeros((2, 2)), np.ones(2)), "A must not be empty or zero"),
        (lambda: Quadratic(np.array([[1.0, 2.0], [0.0, 1.0]]), np.ones(2)), "symmetric"),
        (lambda: Quadratic(np.diag([1.0, -1.0]), np.ones(2)), "positive semidefinite"),
        (lambda: Quadratic(np.diag([1.0, 0.0]), np.ones(2)), "range of A"),
        (lambda: Quadratic(np.diag([1.0, np.nan]), np.ones(2)), "A must be finite"),
        (lambda: Quadratic(np.ones(2), np.ones(2)), "A must have 2 axes"),
        (lambda: LeastSquares(np.eye(2), np.ones(3)), "y must have shape"),
        (lambda: LeastSquares(np.zeros((2, 2)), np.ones(2)), "X must not be empty or zero"),
        (lambda: Logistic(np.eye(2), np.ones(3)), "y must have shape"),
        (lambda: Logistic(np.zeros((2, 2)), np.ones(2)), "X must not be empty or zero"),
        (lambda: Logistic(np.eye(2), np.array([0.0, 1.0])), "labels -1 and 1"),
        (lambda: Logistic(np.eye(2), np.ones(2), -1.0), "l2 must be"),
        (lambda: random_quadratic(0, 1.0, np.random.default_rng(0)), "at least 1, got 0"),
        (lambda: random_quadratic(2, 0.5, np.random.default_rng(0)), "condition must be"),
        (lambda: random_start(2, 0, np.random.default_rng(0)), "num_values must be"),
        (lambda: restricted_smoothness(np.eye(2), np.array([2])), "coordinates in 0..1"),
        (lambda: restricted_smoothness(np.eye(2), np.array([], dtype=int)), "at least one"),
        (lambda: Point(np.array([0, 2]), np.zeros(2)), "codes must be in 0..1"),
        (lambda: Point(np.array([0, 1]), np.array([0.0, np.inf])), "values must be finite"),
        (lambda: Point(np.zeros((2, 3), dtype=int), np.zeros(2)), "same leading axes"),
    ],
)
def test_invalid_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_codes_must_be_integers():
    with pytest.raises(TypeError, match="codes must be integers"):
        Point(np.array([0.0, 1.0]), np.zeros(2))
