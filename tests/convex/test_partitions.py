"""Partitions: counted, unique, and the global optimum against plain enumeration of codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt.convex import (
    ExactP,
    Point,
    all_codes,
    contains,
    global_optimum,
    random_quadratic,
    random_start,
    set_partitions,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None)


def stirling(d: int, blocks: int) -> int:
    """Number of partitions of d things into exactly ``blocks`` blocks, by its recursion."""
    if d == blocks:
        return 1
    if blocks == 0 or blocks > d:
        return 0
    return blocks * stirling(d - 1, blocks) + stirling(d - 1, blocks - 1)


@pytest.mark.parametrize("d", [1, 2, 4, 6])
@pytest.mark.parametrize("c", [1, 2, 3, 6, 8])
def test_set_partitions_are_all_there_once(d, c):
    rows = set_partitions(d, c)
    assert len(rows) == sum(stirling(d, k) for k in range(1, min(c, d) + 1))
    same_block = (rows[:, :, None] == rows[:, None, :]).reshape(len(rows), -1)
    assert len(np.unique(same_block, axis=0)) == len(rows)
    assert rows.max() < c


def test_all_codes_are_all_there_once():
    table = all_codes(4, 3)
    assert table.shape == (81, 4)
    assert len(np.unique(table, axis=0)) == 81
    with pytest.raises(ValueError, match="exceeds the limit"):
        all_codes(24, 4)
    with pytest.raises(ValueError, match="exceed the limit"):
        set_partitions(12, 12)
    with pytest.raises(ValueError, match="at least 1"):
        set_partitions(0, 1)


@some
@given(seed=SEEDS)
def test_contains_is_an_order(seed):
    """P(y) contains P(x): x_i = x_j implies y_i = y_j (PV-Tuning, problem description)."""
    generator = np.random.default_rng(seed)
    x, y, z = generator.integers(3, size=(3, 4))
    assert contains(x, x)
    assert contains(np.zeros(4), x)
    assert contains(x, np.arange(4))
    assert not (contains(x, y) and contains(y, z)) or contains(x, z)
    merged = np.where(x == 2, 0, x)
    assert contains(merged, x)
    assert contains(x, merged) == (len(set(x)) == len(set(merged)))


def test_contains_rejects_other_lengths():
    with pytest.raises(ValueError, match="one length"):
        contains(np.zeros(2), np.zeros(3))


@some
@given(seed=SEEDS)
def test_global_optimum_is_the_best_of_all_codes(draw_case, tolerance, seed):
    """The minimum over R^d_{<=c} is the best P step over all codes (problem description)."""
    problem, point, _ = draw_case(seed, most_d=4, most_c=4)
    codes = all_codes(problem.dimension, point.num_values)
    values = np.zeros((len(codes), point.num_values))
    brute = problem.value(ExactP().step(problem, Point(codes, values)).weights).min()
    found = global_optimum(problem, point.num_values)
    slack = tolerance(problem, found.point)
    assert abs(found.objective - brute) <= slack
    assert abs(float(problem.value(found.point.weights)) - found.objective) <= slack
    fitted = ExactP().step(problem, point)
    assert problem.value(fitted.weights) >= found.objective - slack


@some
@given(seed=SEEDS)
def test_one_value_and_d_values(draw_case, tolerance, seed):
    """c = 1 is the best constant vector, c >= d the unconstrained optimum."""
    problem, point, _ = draw_case(seed, kinds=("quadratic", "least squares"), most_d=5)
    d = problem.dimension
    ones, origin = np.ones(d), np.zeros(d)
    slope = float(problem.gradient(origin) @ ones)
    bend = float(ones @ problem.curvature @ ones)
    slack = tolerance(problem, point)
    if bend > 1e-6 * problem.smoothness:
        constant = float(problem.value(origin)) - slope**2 / (2 * bend)
        assert global_optimum(problem, 1).objective == pytest.approx(constant, abs=slack)
    free = np.linalg.lstsq(problem.curvature, -problem.gradient(origin), rcond=1e-12)[0]
    unconstrained = float(problem.value(free))
    for c in (d, d + 2):
        found = global_optimum(problem, c)
        allowed = tolerance(problem, found.point, Point.from_weights(free))
        assert found.objective == pytest.approx(unconstrained, abs=10 * allowed)


def test_the_optimum_may_lie_in_any_chunk():
    """4140 partitions of 8 coordinates are refitted in two chunks; the best is the last one."""
    problem = random_quadratic(8, 10.0, np.random.default_rng(0))
    found = global_optimum(problem, 8)
    assert found.point.codes.tolist() == list(range(8))
    free = np.linalg.solve(problem.A, problem.b)
    np.testing.assert_allclose(found.point.weights, free, rtol=1e-9)


def test_more_values_never_hurt():
    generator = np.random.default_rng(3)
    problem = random_quadratic(6, 100.0, generator)
    optima = [global_optimum(problem, c).objective for c in range(1, 7)]
    assert all(a >= b for a, b in itertools.pairwise(optima))
    start = random_start(6, 3, generator)
    assert problem.value(start.weights) >= optima[2]
