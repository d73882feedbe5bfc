"""V steps: each equals the enumerated minimiser of its own bound, so none can hurt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt.convex import (
    ExactP,
    ExactV,
    FullMetricV,
    Gain,
    Greedy,
    KeepCodes,
    LinearizedV,
    Point,
    Proportional,
    Proposal,
    Quadratic,
    Stochastic,
    Uniform,
    all_codes,
    diagonal_metric,
    random_quadratic,
    random_start,
    recipes,
    restricted_smoothness,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=25, deadline=None)


def least_bound(problem, point, curvature, movable):
    """Enumerate min of <g, x - y> + 1/2 (x - y)' D (x - y) over codes, only ``movable`` free."""
    y, gradient = point.weights, problem.gradient(point.weights)
    table = all_codes(len(movable), point.num_values)
    codes = np.tile(point.codes, (len(table), 1))
    codes[:, movable] = table
    move = point.values[codes] - y
    return (move @ gradient + 0.5 * np.einsum("ni,ij,nj->n", move, curvature, move)).min()


def bound_at(problem, point, curvature, after):
    move = after.weights - point.weights
    return problem.gradient(point.weights) @ move + 0.5 * move @ curvature @ move


@some
@given(seed=SEEDS, longer=st.floats(1.0, 5.0))
def test_linearized_step_minimises_its_bound(draw_case, tolerance, seed, longer):
    """Rounding y - g/L to V(y) minimises the quadratic bound over V(x) in V(y) (linearized V)."""
    problem, point, _ = draw_case(seed, most_d=4, most_c=4)
    constant = longer * problem.smoothness
    outcome = LinearizedV(step_size=1 / constant).step(problem, point)
    bound = constant * np.eye(problem.dimension)
    least = least_bound(problem, point, bound, np.arange(problem.dimension))
    slack = tolerance(problem, point)
    assert bound_at(problem, point, bound, outcome.point) <= least + longer * slack
    change = problem.value(outcome.point.weights) - problem.value(point.weights)
    assert change <= bound_at(problem, point, bound, outcome.point) + longer * slack
    assert change <= slack
    assert outcome.smoothness == pytest.approx(constant)
    assert np.array_equal(outcome.point.values, point.values)


@some
@given(
    seed=SEEDS, size=st.integers(1, 4), rule=st.sampled_from([Greedy, Uniform, Gain, Proportional])
)
def test_subspace_step_minimises_its_bound_with_l_s(draw_case, tolerance, seed, size, rule):
    """Inside S the step rounds with L_S, outside nothing moves, phi does not rise (subspace)."""
    problem, point, generator = draw_case(seed, most_d=4, most_c=4)
    outcome = LinearizedV(subspace=rule(size)).step(problem, point, generator=generator)
    constant = float(outcome.smoothness)
    moved = np.flatnonzero(outcome.point.codes != point.codes)
    assert len(moved) <= size
    assert constant <= problem.smoothness * (1 + 1e-12)
    slack = tolerance(problem, point)
    found = problem.value(outcome.point.weights)
    assert found <= problem.value(point.weights) + slack
    # The selected subspace is one with this L_S, and the step is the best for one such subspace.
    d = problem.dimension
    subsets = [s for s in all_codes(min(size, d), d) if len(set(s.tolist())) == min(size, d)]
    bound = constant * np.eye(d)
    mine = bound_at(problem, point, bound, outcome.point)
    fitting = [
        s
        for s in subsets
        if set(moved) <= set(s.tolist())
        and abs(restricted_smoothness(problem.curvature, np.sort(s)) - constant) <= 1e-9 * constant
    ]
    assert any(mine <= least_bound(problem, point, bound, np.sort(s)) + slack for s in fitting)


@some
@given(seed=SEEDS, rule=st.sampled_from(["scaled", "row sums"]))
def test_diagonal_metric_step_minimises_its_bound(draw_case, tolerance, seed, rule):
    """Any D >= Hessian may replace L I; a diagonal one stays separable (metric in the V step)."""
    problem, point, _ = draw_case(seed, most_d=4, most_c=4)
    metric = diagonal_metric(problem.curvature, rule=rule)
    gap = np.linalg.eigvalsh(np.diag(metric) - problem.curvature)[0]
    assert gap >= -1e-9 * problem.smoothness
    outcome = LinearizedV(metric=metric).step(problem, point)
    bound = np.diag(metric)
    least = least_bound(problem, point, bound, np.arange(problem.dimension))
    slack = problem.dimension * tolerance(problem, point)
    assert bound_at(problem, point, bound, outcome.point) <= least + slack
    assert problem.value(outcome.point.weights) <= problem.value(point.weights) + slack


@some
@given(seed=SEEDS)
def test_full_metric_step_minimises_its_bound(draw_case, tolerance, seed):
    """A block metric above the Hessian: monotone, and the bound is minimised (metric in V)."""
    problem, point, generator = draw_case(seed, most_d=4, most_c=4)
    d = problem.dimension
    shape = generator.standard_normal((d, d))
    metric = problem.curvature + shape @ shape.T + 1e-6 * problem.smoothness * np.eye(d)
    outcome = FullMetricV(metric).step(problem, point)
    least = least_bound(problem, point, metric, np.arange(d))
    slack = tolerance(problem, point)
    assert bound_at(problem, point, metric, outcome.point) <= least + slack
    assert problem.value(outcome.point.weights) <= problem.value(point.weights) + slack


@some
@given(seed=SEEDS)
def test_exact_step_is_the_enumerated_minimum(draw_case, tolerance, seed):
    """x = M_V(y): the best of all codes with the values of y (the PV algorithm)."""
    problem, point, _ = draw_case(seed, most_d=4, most_c=4)
    every = point.values[all_codes(problem.dimension, point.num_values)]
    least = problem.value(every).min()
    slack = tolerance(problem, point)
    solvers = ["auto", "enumeration", "branch and bound"][: 3 if problem.is_quadratic else 2]
    for solver in solvers:
        outcome = ExactV(solver).step(problem, point)
        assert problem.value(outcome.point.weights) <= least + slack
        assert np.array_equal(outcome.point.values, point.values)
        assert float(outcome.certificate_gap) <= 100 * slack  # low rank: the regularisation


def test_exact_steps_of_a_batch_and_in_the_hessian_metric_agree():
    """With D the Hessian of a quadratic the metric step is the exact V step."""
    generator = np.random.default_rng(0)
    problem = random_quadratic(7, 100.0, generator)
    start = random_start(7, 4, generator, runs=4)  # 4**7 codes: past the limit of enumeration
    bounded = ExactV().step(problem, start)
    listed = ExactV("enumeration").step(problem, start)
    metric = FullMetricV(problem.A).step(problem, start)
    assert np.array_equal(bounded.point.codes, listed.point.codes)
    assert np.array_equal(bounded.point.codes, metric.point.codes)
    assert bounded.certificate_gap.shape == (4,)


@some
@given(seed=SEEDS)
def test_gain_predicts_the_decrease_it_takes(draw_case, tolerance, seed):
    """g s + B_ii s^2 / 2 is the exact change of a quadratic; with one coordinate it is taken."""
    problem, point, _ = draw_case(seed, kinds=("quadratic", "least squares"))
    here = problem.value(point.weights)
    outcome = LinearizedV(subspace=Gain(1)).step(problem, point)
    singles = np.tile(point.weights, (problem.dimension, point.num_values, 1))
    for i in range(problem.dimension):
        singles[i, :, i] = point.values
    best = min(problem.value(singles).min(), here)
    assert abs(problem.value(outcome.point.weights) - best) <= tolerance(problem, point)


@some
@given(seed=SEEDS)
def test_gain_never_stalls_before_single_changes_do(draw_case, tolerance, seed):
    """Where a gain step does not move, no change of one code lowers the objective."""
    problem, point, _ = draw_case(seed, kinds=("quadratic",), most_d=5, most_c=4)
    run = recipes.subspace_pv(Gain(1)).run(problem, point)
    assert run.stop_reason == "fixed point"
    last = run.final
    for i in range(problem.dimension):
        for value in last.values:
            other = last.weights.copy()
            other[i] = value
            assert problem.value(other) >= run.objective[-1] - tolerance(problem, last)


def test_greedy_stalls_where_gain_moves():
    """The largest gradient may belong to a coordinate that cannot cross to another value."""
    problem = Quadratic(np.diag([100.0, 1.0]), np.array([40.0, 0.9]))
    point = Point(np.array([0, 0]), np.array([0.0, 1.0]))
    greedy = LinearizedV(subspace=Greedy(1)).step(problem, point)
    gain = LinearizedV(subspace=Gain(1)).step(problem, point)
    assert greedy.point.codes.tolist() == [0, 0]
    assert gain.point.codes.tolist() == [0, 1]


def test_small_steps_leave_every_code_alone():
    """|g_i| / L below half the gap of the values: rounding returns y (naive linearized stalls)."""
    problem = Quadratic(np.diag([1.0, 1000.0]), np.array([0.8, 0.0]))
    point = Point(np.array([0, 0]), np.array([0.0, 1.0]))
    assert LinearizedV().step(problem, point).point.codes.tolist() == [0, 0]
    assert LinearizedV(50).step(problem, point).point.codes.tolist() == [0, 0]
    metric = diagonal_metric(problem.A)
    assert LinearizedV(metric=metric).step(problem, point).point.codes.tolist() == [1, 0]


def test_too_small_a_constant_breaks_monotonicity():
    """The bound needs L >= lambda_max: at a tenth of it rounding jumps past the minimum."""
    problem = Quadratic(np.array([[1.0]]), np.array([0.4]))
    point = Point(np.array([0]), np.array([0.0, 4.0]))
    assert LinearizedV(step_size=1.0).step(problem, point).point.codes.tolist() == [0]
    jumped = LinearizedV(step_size=10.0).step(problem, point).point
    assert jumped.codes.tolist() == [1]
    assert problem.value(jumped.weights) > problem.value(point.weights)


def test_subspace_rules_select_what_they_say():
    generator = np.random.default_rng(0)
    problem = random_quadratic(6, 100.0, generator)
    point = ExactP().step(problem, random_start(6, 3, generator))
    gradient = problem.gradient(point.weights)
    proposal = Proposal(problem, point, gradient, -gradient / problem.smoothness)
    top = Greedy(3).select(proposal)
    assert top.tolist() == np.argsort(-np.abs(gradient))[:3].tolist()
    draws = {rule: np.zeros(6) for rule in (Uniform(2), Proportional(1), Proportional(1, 0.05))}
    for rule, counts in draws.items():
        for _ in range(3000):
            chosen = rule.select(proposal, generator)
            assert len(set(chosen.tolist())) == rule.size
            counts[chosen] += 1
    uniform, proportional, cold = draws.values()
    np.testing.assert_allclose(uniform / 6000, 1 / 6, atol=0.03)
    np.testing.assert_allclose(
        proportional / 3000, np.abs(gradient) / np.abs(gradient).sum(), atol=0.04
    )
    assert cold[top[0]] > 2500
    assert Greedy(99).select(proposal).shape == (6,)


def test_proportional_draws_in_proportion():
    """P(i) is the share of |update_i|, to the power 1 / temperature (subspace selection)."""
    generator = np.random.default_rng(0)
    update = np.array([0.1, -0.2, 0.3, -0.4])
    point = Point(np.zeros((20_000, 4), dtype=int), np.zeros((20_000, 1)))
    problem = Quadratic(np.eye(4), -update)
    every = np.tile(update, (20_000, 1))
    proposal = Proposal(problem, point, -every, every)
    for temperature in (1.0, 0.5):
        drawn = Proportional(1, temperature).select(proposal, generator)[:, 0]
        weights = np.abs(update) ** (1 / temperature)
        shares = np.bincount(drawn, minlength=4) / 20_000
        np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.012)


@some
@given(seed=SEEDS, inner=st.integers(2, 4), decay=st.sampled_from([0.0, 0.4, 1.0]))
def test_inner_iterations_are_steps_with_new_gradients(seed, inner, decay):
    """T linearized steps before the next P step: each at its own gradient and subspace."""
    generator = np.random.default_rng(seed)
    problem, point = random_quadratic(5, 30.0, generator), random_start(5, 4, generator)
    rule = Gain(2) if decay == 1 else Greedy(2)
    together = LinearizedV(inner, rule, latent_decay=decay).step(problem, point)
    single, buffer, constants = LinearizedV(1, rule, latent_decay=decay), None, []
    for _ in range(inner):
        outcome = single.step(problem, point, buffer=buffer)
        point, buffer = outcome.point, outcome.buffer
        constants.append(float(outcome.smoothness))
    assert np.array_equal(together.point.codes, point.codes)
    np.testing.assert_allclose(together.buffer, buffer, rtol=1e-12)
    assert together.smoothness == max(constants)


def test_a_batch_of_v_steps_is_its_rows():
    generator = np.random.default_rng(0)
    problem = random_quadratic(5, 100.0, generator)
    start = random_start(5, 3, generator, runs=6)
    buffer = start.weights + 0.1
    rules = [
        LinearizedV(),
        LinearizedV(3),
        LinearizedV(subspace=Gain(2)),
        LinearizedV(latent_decay=0.3),
        LinearizedV(metric=diagonal_metric(problem.A)),
        ExactV(),
        KeepCodes(),
    ]
    for rule in rules:
        together = rule.step(problem, start, buffer=buffer)
        for run in range(6):
            alone = rule.step(problem, start[run], buffer=buffer[run])
            assert np.array_equal(together.point.codes[run], alone.point.codes)
            np.testing.assert_allclose(together.buffer[run], alone.buffer, rtol=1e-12)
            np.testing.assert_allclose(together.smoothness[run], alone.smoothness, rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearizedV(0), "inner must be at least 1, got 0"),
        (lambda: LinearizedV(step_size=-1.0), "step_size must be positive"),
        (lambda: LinearizedV(latent_decay=1.5), "latent_decay must be in 0..1, got 1.5"),
        (lambda: LinearizedV(trust_ratio=0.0), "trust_ratio must be positive or None, got 0.0"),
        (lambda: LinearizedV(metric=np.zeros(2)), "metric must be a vector of positive"),
        (lambda: LinearizedV(metric=np.ones(2), step_size=1.0), "exclude each other"),
        (lambda: FullMetricV(np.ones((2, 3))), "metric must be a square"),
        (lambda: FullMetricV(np.diag([1.0, 0.0])), "positive definite"),
        (lambda: ExactV("magic"), "solver must be one of"),
        (lambda: ExactV(limit=0), "limit must be at least 1"),
        (lambda: Greedy(0), "size must be at least 1"),
        (lambda: Proportional(1, 0.0), "temperature must be positive"),
        (lambda: diagonal_metric(np.eye(2), rule="best"), "rule must be"),
        (lambda: recipes.metric_pv(np.eye(2), inner=2), "inner must be 1"),
    ],
)
def test_invalid_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "rule",
    [
        LinearizedV(subspace=Uniform()),
        LinearizedV(subspace=Proportional()),
        LinearizedV(rounding=Stochastic()),
    ],
)
def test_random_steps_ask_for_a_generator(rule):
    assert not rule.deterministic
    point = Point(np.array([0, 0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="generator must be given"):
        rule.step(Quadratic(np.eye(2), np.ones(2)), point)


def test_branch_and_bound_needs_a_quadratic(draw_case):
    problem, point, _ = draw_case(0, kinds=("logistic",))
    with pytest.raises(TypeError, match="needs a quadratic, got Logistic"):
        ExactV("branch and bound").step(problem, point)
