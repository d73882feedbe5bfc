"""P steps: the partition stays, the block gradients vanish, nothing gets worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from pvopt.convex import (
    ExactP,
    GradientP,
    KeepValues,
    Logistic,
    Point,
    Quadratic,
    contains,
    random_quadratic,
    random_start,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=25, deadline=None)


@some
@given(seed=SEEDS)
def test_block_gradient_sums_vanish(draw_case, seed):
    """Optimality of the P step: the gradient sums to zero over every block (the PV algorithm)."""
    problem, point, _ = draw_case(seed)
    fitted = ExactP().step(problem, point)
    gradient = problem.gradient(fitted.weights)
    sums = np.bincount(point.codes, gradient, minlength=point.num_values)
    size = 1 + np.abs(fitted.values).max() + np.abs(point.values).max()
    assert np.abs(sums).max() <= 1e-9 * problem.smoothness * size * problem.dimension


@some
@given(seed=SEEDS)
def test_exact_p_step_keeps_the_partition_and_is_never_worse(draw_case, tolerance, seed):
    """y = M_P(x): P(y) contains P(x), and phi(y) <= phi(x) (convergence theorem)."""
    problem, point, _ = draw_case(seed)
    fitted = ExactP().step(problem, point)
    assert np.array_equal(fitted.codes, point.codes)
    assert contains(fitted.weights, point.codes)
    slack = tolerance(problem, point, fitted)
    assert problem.value(fitted.weights) <= problem.value(point.weights) + slack


@some
@given(seed=SEEDS)
def test_exact_p_step_beats_every_other_choice_of_values(draw_case, tolerance, seed):
    """M_P minimises over all y whose partition contains P(x) (the PV algorithm)."""
    problem, point, generator = draw_case(seed)
    fitted = ExactP().step(problem, point)
    best = problem.value(fitted.weights)
    for size in (1e-3, 0.1, 10.0):
        values = fitted.values + size * generator.standard_normal((20, point.num_values))
        others = values[:, point.codes]
        slack = tolerance(problem, fitted, Point(np.tile(point.codes, (20, 1)), values))
        assert (problem.value(others) >= best - slack).all()


@some
@given(seed=SEEDS)
def test_exact_p_step_agrees_with_scipy(draw_case, seed):
    """An independent solver of the reduced problem v -> phi(E v) finds the same minimum."""
    problem, point, _ = draw_case(seed, kinds=("logistic",))
    codes = point.codes

    def slope(values):
        return np.bincount(codes, problem.gradient(values[codes]), minlength=len(values))

    found = minimize(
        lambda v: float(problem.value(v[codes])),
        point.values,
        jac=slope,
        method="BFGS",
        options={"gtol": 1e-8},
    )
    fitted = ExactP().step(problem, point)
    used = np.unique(codes)
    np.testing.assert_allclose(fitted.values[used], found.x[used], atol=1e-5)
    assert problem.value(fitted.weights) <= found.fun + 1e-12


@some
@given(seed=SEEDS)
def test_quadratic_p_step_is_the_closed_form(draw_case, seed):
    """(E'AE) v = E'b for quadratics (the P step in closed form)."""
    problem, point, _ = draw_case(seed, kinds=("quadratic",))
    one_hot = np.eye(point.num_values)[point.codes]
    used = np.unique(point.codes)
    reduced = (one_hot.T @ problem.A @ one_hot)[np.ix_(used, used)]
    values = np.linalg.solve(reduced, (one_hot.T @ problem.b)[used])
    np.testing.assert_allclose(
        ExactP().step(problem, point).values[used], values, rtol=1e-8, atol=1e-8
    )


def test_unused_and_undetermined_values_stay():
    """The minimiser nearest to the present values: an unused value keeps its place."""
    point = Point(np.array([0, 2, 2]), np.array([1.0, 7.0, 3.0]))
    fitted = ExactP().step(Quadratic(np.eye(3), np.array([4.0, 5.0, 6.0])), point)
    np.testing.assert_allclose(fitted.values, [4.0, 7.0, 5.5])
    flat = Quadratic(np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([2.0, 2.0]))
    moved = ExactP().step(flat, Point(np.array([0, 1]), np.array([3.0, 1.0])))
    np.testing.assert_allclose(
        moved.values, [2.0, 0.0], atol=1e-12
    )  # x_1 + x_2 = 2, nearest to (3, 1)


def test_separable_data_without_a_penalty_still_descends():
    """An objective without a minimiser: the step stops at its limit, never worse."""
    problem = Logistic(np.array([[1.0], [2.0]]), np.ones(2))
    point = Point(np.array([0]), np.array([0.0]))
    fitted = ExactP(max_iterations=5).step(problem, point)
    assert problem.value(fitted.weights) < problem.value(point.weights)


def test_newton_survives_a_start_where_the_full_step_overshoots():
    problem = Logistic(np.array([[10.0], [9.0]]), np.array([1.0, -1.0]), 1e-3)
    point = Point(np.array([0]), np.array([5.0]))
    fitted = ExactP().step(problem, point)
    assert abs(problem.gradient(fitted.weights)).max() < 1e-9


@some
@given(seed=SEEDS)
def test_gradient_p_step_of_the_reduced_smoothness_is_never_worse(draw_case, tolerance, seed):
    """An inexact P step that is not worse than its input keeps the guarantees (theorem)."""
    problem, point, _ = draw_case(seed)
    moved = GradientP(steps=3).step(problem, point)
    slack = tolerance(problem, point, moved)
    assert problem.value(moved.weights) <= problem.value(point.weights) + slack
    many = GradientP(steps=300).step(problem, point)
    assert problem.value(many.weights) <= problem.value(moved.weights) + slack


@some
@given(seed=SEEDS)
def test_gradient_p_step_sums_the_members_of_each_value(draw_case, seed):
    """Chain rule: the gradient of a shared value is the sum over its members."""
    problem, point, generator = draw_case(seed)
    gradient = problem.gradient(point.weights)
    expected = point.values.copy()
    for i, code in enumerate(point.codes):
        expected[code] -= 0.01 * gradient[i]
    moved = GradientP(0.01).step(problem, point)
    np.testing.assert_allclose(moved.values, expected, rtol=1e-10, atol=1e-10)
    elsewhere = generator.standard_normal(problem.dimension)
    told = GradientP(0.01).step(problem, point, gradient=elsewhere)
    sums = np.bincount(point.codes, elsewhere, minlength=point.num_values)
    np.testing.assert_allclose(told.values, point.values - 0.01 * sums, rtol=1e-10, atol=1e-12)


def test_a_batch_of_p_steps_is_its_rows():
    generator = np.random.default_rng(0)
    problem = random_quadratic(5, 100.0, generator)
    start = random_start(5, 3, generator, runs=7)
    for rule in (ExactP(), GradientP(), GradientP(0.001, 4), KeepValues()):
        together = rule.step(problem, start)
        for run in range(7):
            alone = rule.step(problem, start[run])
            np.testing.assert_allclose(together.values[run], alone.values, rtol=1e-10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExactP(max_iterations=0), "max_iterations must be at least 1, got 0"),
        (lambda: ExactP(tolerance=0.0), "tolerance must be positive"),
        (lambda: GradientP(0.0), "step_size must be positive"),
        (lambda: GradientP(steps=0), "steps must be at least 1"),
    ],
)
def test_invalid_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
