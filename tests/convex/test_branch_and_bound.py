"""Branch and bound against enumeration, and its certificate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt.convex import QuadraticModel, all_codes, branch_and_bound, random_quadratic

SEEDS = st.integers(0, 2**32 - 1)


def random_model(seed: int, d: int, c: int, condition: float, rank: int) -> QuadraticModel:
    generator = np.random.default_rng(seed)
    factor = generator.standard_normal((rank, d)) * np.geomspace(1, condition**0.5, rank)[:, None]
    curvature = factor.T @ factor
    gradient = curvature @ generator.standard_normal(d) * 10 ** generator.uniform(-1, 1)
    values = generator.standard_normal(c)
    if c > 2 and generator.random() < 0.3:
        values[-1] = values[0]
    return QuadraticModel(curvature, gradient, values[generator.integers(c, size=d)], values)


@settings(max_examples=75, deadline=None)
@given(
    seed=SEEDS,
    d=st.integers(1, 6),
    c=st.integers(1, 5),
    condition=st.sampled_from([1, 1e2, 1e6]),
    deficit=st.integers(0, 3),
)
def test_equals_enumeration_and_certifies_it(seed, d, c, condition, deficit):
    """The exact V step: lower bound = upper bound = the enumerated minimum (the PV algorithm)."""
    model = random_model(seed, d, c, condition, max(1, d - deficit))
    found = branch_and_bound(model, np.zeros(d, dtype=int))
    least = float(model(all_codes(d, c)).min())
    spread = np.square(model.values - model.origin[:, None]).max(1).sum()
    scale = 1e-9 * (abs(least) + np.linalg.eigvalsh(model.curvature)[-1] * (spread + 1e-3))
    assert found.upper_bound == pytest.approx(float(model(found.codes)), abs=scale)
    assert abs(found.upper_bound - least) <= scale
    assert found.lower_bound <= least + scale
    assert found.gap <= scale


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, nodes=st.integers(1, 40))
def test_a_stopped_search_still_brackets_the_minimum(seed, nodes):
    """Out of nodes: the bounds differ, but the minimum lies between them."""
    model = random_model(seed, 7, 4, 1e6, 7)
    found = branch_and_bound(model, np.zeros(7, dtype=int), max_nodes=nodes)
    least = float(model(all_codes(7, 4)).min())
    slack = 1e-9 * abs(least)
    assert found.lower_bound - slack <= least <= found.upper_bound + slack


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, nodes=st.sampled_from([1, 200, 100_000]))
def test_bounds_hold_where_rounding_dominates(seed, nodes):
    """A matrix near a diagonal: the bound leans on the discreteness of single coordinates."""
    generator = np.random.default_rng(seed)
    noise = 0.2 * generator.standard_normal((6, 6))
    curvature = np.diag(generator.uniform(1, 3, 6)) + noise @ noise.T
    values = np.array([-1.0, 0.0, 1.0])
    gradient = -curvature @ generator.uniform(-1, 1, 6)
    model = QuadraticModel(curvature, gradient, np.zeros(6), values)
    found = branch_and_bound(model, np.zeros(6, dtype=int), max_nodes=nodes)
    least = float(model(all_codes(6, 3)).min())
    assert found.lower_bound <= least + 1e-12 <= found.upper_bound + 2e-12
    assert nodes < 100_000 or found.gap <= 1e-12


def test_finds_a_pair_of_codes_that_only_move_together():
    """From (1, 0) every single change costs, and so does rounding the minimum, to (0, 0)."""
    curvature = np.array([[1.0, 0.9], [0.9, 1.0]])
    target, values = np.array([0.44, 0.46]), np.array([0.0, 1.0])
    origin = np.array([1.0, 0.0])
    model = QuadraticModel(curvature, curvature @ (origin - target), origin, values)
    found = branch_and_bound(model, np.array([1, 0]))
    assert found.codes.tolist() == [0, 1]
    assert found.upper_bound == pytest.approx(0.02876 - 0.03076)
    assert found.gap <= 1e-12


def test_the_limit_is_told_by_the_gap():
    model = random_model(5, 24, 8, 1e6, 24)
    stopped = branch_and_bound(model, np.zeros(24, dtype=int), max_nodes=1)
    assert stopped.gap > 0
    with pytest.raises(ValueError, match="max_nodes must be at least 1"):
        branch_and_bound(model, np.zeros(24, dtype=int), max_nodes=0)


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_certifies_24_coordinates(condition):
    """4**24 codes, certified; nobody finds anything better by local search."""
    generator = np.random.default_rng(1)
    problem = random_quadratic(24, condition, generator)
    values = 0.5 * generator.standard_normal(4)
    codes = generator.integers(4, size=24)
    origin = values[codes]
    model = QuadraticModel(problem.A, problem.gradient(origin), origin, values)
    found = branch_and_bound(model, codes)
    assert found.gap <= 1e-9 * abs(found.upper_bound)
    assert found.upper_bound < 0
    flips = found.codes + generator.integers(4, size=(20_000, 24)) * (
        generator.random((20_000, 24)) < 0.1
    )
    assert model(flips % 4).min() >= found.upper_bound - 1e-9 * abs(found.upper_bound)


def test_never_worse_than_its_start():
    model = random_model(0, 6, 3, 100.0, 6)
    best = branch_and_bound(model, np.zeros(6, dtype=int))
    again = branch_and_bound(model, best.codes, max_nodes=1)
    assert again.upper_bound == best.upper_bound
    assert np.array_equal(again.codes, best.codes)
