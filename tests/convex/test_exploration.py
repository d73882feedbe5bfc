"""Exploration and the record of runs: monotone reports that end below PV's limit points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt.convex import (
    Exploration,
    Gain,
    KeepValues,
    Point,
    Quadratic,
    concatenate,
    global_optimum,
    random_quadratic,
    random_start,
    recipes,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None)


@some
@given(seed=SEEDS)
def test_exploration_never_reports_a_rise(draw_case, tolerance, seed):
    """A best-so-far guard keeps every report monotone and feasible (limitations: exploration)."""
    problem, point, generator = draw_case(seed, kinds=("quadratic", "least squares"))
    local = recipes.subspace_pv(Gain(), inner=4)
    alone = local.run(problem, point)
    run = Exploration(method=local, rounds=5, changes=2).run(problem, point, generator=generator)
    assert (run.decreases >= 0).all()
    slack = tolerance(problem, point, alone.final)
    assert run.objective[-1] <= alone.objective[-1] + slack
    assert run.objective[-1] >= global_optimum(problem, point.num_values).objective - slack
    np.testing.assert_allclose(problem.value(run.weights), run.objective, atol=slack)
    assert len(run.objective) == 2 * len(run.smoothness) + 1


def test_exploration_beats_the_limit_points_of_exact_pv():
    """PV's limit points are optimal in P and in V, not jointly; a kick and a guard leave them."""
    generator = np.random.default_rng(0)
    problem = random_quadratic(6, 100.0, generator)
    start = random_start(6, 3, generator, runs=30)
    exact = recipes.exact_pv().run(problem, start).objective[-1]
    explorer = Exploration(method=recipes.subspace_pv(Gain(), inner=8), rounds=40)
    explored = explorer.run(problem, start, generator=generator).objective[-1]
    optimum = global_optimum(problem, 3).objective
    assert (explored <= exact + 1e-9).all()
    assert (explored - optimum).mean() < 0.05 * (exact - optimum).mean()


@some
@given(seed=SEEDS)
def test_guarded_keeps_the_best_point_of_every_run(seed):
    generator = np.random.default_rng(seed)
    problem, start = random_quadratic(4, 50.0, generator), random_start(4, 2, generator, runs=3)
    run = recipes.ste().run(problem, start, iterations=20)
    guarded = run.guarded()
    assert np.array_equal(guarded.objective, np.minimum.accumulate(run.objective))
    np.testing.assert_allclose(problem.value(guarded.weights), guarded.objective, rtol=1e-12)
    assert guarded.is_monotone().all()


def test_concatenate_joins_runs_end_to_start():
    problem = Quadratic(np.eye(3), np.array([1.0, 2.0, 4.0]))
    start = Point(np.array([0, 0, 0]), np.array([0.0, 3.0]))
    method = recipes.linearized_pv()
    whole = method.run(problem, start, iterations=4)
    first = method.run(problem, start, iterations=1)
    rest = method.run(problem, first.final, iterations=3)
    joined = concatenate([first, rest])
    assert np.array_equal(joined.objective, whole.objective)
    assert np.array_equal(joined.codes, whole.codes)
    assert joined.iterations == whole.iterations
    assert joined.stop_reason == whole.stop_reason
    with pytest.raises(ValueError, match="at least one trajectory"):
        concatenate([])


def test_a_trajectory_tells_where_it_rose():
    problem = Quadratic(np.eye(1), np.array([0.4]))
    start = Point(np.array([0]), np.array([0.0, 4.0]))
    jumped = recipes.linearized_pv(step_size=10.0, p_step=KeepValues()).run(
        problem, start, iterations=1
    )
    assert not jumped.is_monotone()
    assert jumped.decreases[0] == 0
    assert jumped.decreases[1] < 0


def test_invalid_settings_are_named():
    with pytest.raises(ValueError, match="rounds must be at least 0"):
        Exploration(method=recipes.ste(), rounds=-1)
    with pytest.raises(ValueError, match="changes must be at least 1"):
        Exploration(method=recipes.ste(), changes=0)
