"""Methods: the guarantees of PV on whole runs, and plain loops as independent oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt.convex import (
    ExactV,
    Gain,
    GradientP,
    Greedy,
    KeepValues,
    LinearizedV,
    Method,
    Point,
    Proportional,
    Quadratic,
    Uniform,
    diagonal_metric,
    global_optimum,
    random_quadratic,
    random_start,
    recipes,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=12, deadline=None)

MONOTONE = {
    "exact": lambda p: recipes.exact_pv(),
    "linearized": lambda p: recipes.linearized_pv(),
    "linearized, T = 5": lambda p: recipes.linearized_pv(5),
    "linearized, L too large": lambda p: recipes.linearized_pv(2, step_size=0.3 / p.smoothness),
    # After an exact P step the gradients in a block of two are each other's negative: a tie for the
    # last place in the subspace, which the last digit (and so the machine) decides. So not here.
    "greedy": lambda p: recipes.subspace_pv(Greedy(2), p_step=GradientP(0.3 / p.smoothness)),
    "uniform": lambda p: recipes.subspace_pv(Uniform(2), inner=2),
    "proportional": lambda p: recipes.subspace_pv(Proportional(1)),
    "gain": lambda p: recipes.subspace_pv(Gain(1), inner=3),
    "trust region": lambda p: Method(v_step=LinearizedV(subspace=Greedy(3), trust_ratio=0.1)),
    "diagonal metric": lambda p: recipes.metric_pv(diagonal_metric(p.curvature)),
    "row sums metric": lambda p: recipes.metric_pv(
        diagonal_metric(p.curvature, rule="row sums"), inner=2
    ),
    "full metric": lambda p: recipes.metric_pv(
        p.curvature + 0.1 * p.smoothness * np.eye(p.dimension)
    ),
    "gradient P step": lambda p: recipes.linearized_pv(p_step=GradientP()),
    "continuous only": lambda p: recipes.continuous_only(),
}
OTHER = {
    "straight-through": lambda p: recipes.ste(),
    "penalised straight-through": lambda p: recipes.penalised_ste(0.2),
    "stochastic, power": lambda p: recipes.stochastic_rounding(),
    "stochastic, linear": lambda p: recipes.stochastic_rounding("linear"),
    "subspace and buffer": lambda p: recipes.subspace_pv_ste(Greedy(2)),
    "simultaneous": lambda p: Method(p_step=GradientP(), simultaneous=True),
}


@pytest.mark.parametrize("name", MONOTONE | OTHER)
@some
@given(seed=SEEDS)
def test_every_iterate_is_feasible(draw_case, name, seed):
    """x^k and y^k stay in R^d_{<=c}; P steps keep codes, V steps values (PV algorithm)."""
    problem, point, generator = draw_case(seed, most_d=4, most_c=4)
    method = (MONOTONE | OTHER)[name](problem)
    run = method.run(problem, point, iterations=8, generator=generator)
    for weights in run.weights:
        assert len(np.unique(weights)) <= point.num_values
    assert np.array_equal(run.codes[0:-1:2], run.codes[1::2])
    assert np.array_equal(run.values[1::2], run.values[2::2])
    assert np.allclose(run.objective, [problem.value(x) for x in run.weights], rtol=1e-12)
    assert len(run.objective) == 2 * len(run.smoothness) + 1


@pytest.mark.parametrize("name", MONOTONE)
@some
@given(seed=SEEDS)
def test_no_half_step_hurts_and_the_objective_converges(draw_case, tolerance, name, seed):
    """phi(x^{k+1}) <= phi(y^k) <= phi(x^k); bounded below, so it converges (the theorem)."""
    problem, point, generator = draw_case(seed, most_d=4, most_c=4)
    method = MONOTONE[name](problem)
    run = method.run(problem, point, iterations=40, generator=generator)
    slack = tolerance(problem, *(run.point(h) for h in range(len(run.objective))))
    assert (run.decreases >= -slack).all()
    least = global_optimum(problem, point.num_values).objective
    assert run.objective.min() >= least - slack
    # Bounded below and monotone: late decreases are what is left of a finite sum.
    total = run.objective[0] - least
    assert run.decreases[len(run.decreases) // 2 :].sum() <= total + len(run.objective) * slack
    if run.stop_reason == "fixed point":
        more = method.run(problem, run.final, iterations=3, generator=generator)
        assert abs(more.objective[-1] - run.objective[-1]) <= slack


@some
@given(seed=SEEDS)
def test_finitely_many_partitions_make_exact_steps_stop(draw_case, tolerance, seed):
    """With exact P steps the objective depends on the partition alone: PV reaches a fixed point."""
    problem, point, _ = draw_case(seed)
    for method in (recipes.linearized_pv(), recipes.subspace_pv(Gain(1)), recipes.exact_pv()):
        if method.v_step == ExactV() and not problem.is_quadratic and problem.dimension > 4:
            continue
        run = method.run(problem, point, iterations=200)
        assert run.stop_reason == "fixed point"
        assert (run.iterations <= len(run.smoothness) - 1).all()
        slack = tolerance(problem, run.final)
        assert run.objective[-1] >= global_optimum(problem, point.num_values).objective - slack


@some
@given(seed=SEEDS)
def test_distinct_values_reach_the_unconstrained_optimum(seed):
    """c = d, start with d distinct values: every partition is allowed (toy experiments)."""
    generator = np.random.default_rng(seed)
    problem = random_quadratic(5, 100.0, generator)
    start = random_start(5, 5, generator)
    free = float(problem.value(np.linalg.solve(problem.A, problem.b)))
    for method in (recipes.exact_pv(), recipes.linearized_pv(), recipes.subspace_pv()):
        run = method.run(problem, start)
        assert run.objective[-1] == pytest.approx(free, abs=1e-8 * problem.smoothness)


@some
@given(seed=SEEDS)
def test_one_value_gives_the_best_constant_vector(seed):
    """c = 1: one P step ends at the best constant vector (toy experiments)."""
    generator = np.random.default_rng(seed)
    problem = random_quadratic(5, 100.0, generator)
    best = problem.b.sum() / problem.A.sum()
    for method in (recipes.exact_pv(), recipes.linearized_pv(), recipes.ste()):
        run = method.run(problem, random_start(5, 1, generator), iterations=3)
        np.testing.assert_allclose(run.final.weights, best, rtol=1e-8)


DETERMINISTIC = {
    "exact": lambda p: recipes.exact_pv(),
    "linearized": lambda p: recipes.linearized_pv(2),
    "gain": lambda p: recipes.subspace_pv(Gain(1)),
    # After an exact P step the gradients in a block of two are each other's negative: a tie for the
    # last place in the subspace, which the last digit (and so the machine) decides. So not here.
    "greedy": lambda p: recipes.subspace_pv(Greedy(2), p_step=GradientP(0.3 / p.smoothness)),
    "metric": lambda p: recipes.metric_pv(diagonal_metric(p.curvature)),
    # With exact P steps an unused value may equal a used one (it was once the best value of the
    # same block); a buffer can then part the block between them, by the last digit. So not here.
    "straight-through": lambda p: recipes.ste(p_step=KeepValues()),
    "gradient": lambda p: recipes.penalised_ste(0.5, p_step=GradientP(0.3 / p.smoothness)),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
@some
@given(seed=SEEDS)
def test_permuting_the_coordinates_permutes_the_run(name, seed):
    """No step knows the order of the coordinates (invariance of the problem)."""
    generator = np.random.default_rng(seed)
    problem, start = random_quadratic(5, 50.0, generator), random_start(5, 3, generator)
    order = generator.permutation(5)
    other = Quadratic(problem.A[np.ix_(order, order)], problem.b[order])
    run = DETERMINISTIC[name](problem).run(problem, start, iterations=10)
    permuted = DETERMINISTIC[name](other).run(
        other, Point(start.codes[order], start.values), iterations=10
    )
    length = min(len(run.weights), len(permuted.weights))
    np.testing.assert_allclose(
        run.weights[:length, order], permuted.weights[:length], rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("name", DETERMINISTIC)
@some
@given(seed=SEEDS, factor=st.sampled_from([1e-3, 0.7, 40.0]))
def test_scaling_the_objective_changes_no_iterate(name, seed, factor):
    """Step sizes are 1/L: a factor on phi cancels (invariance of the problem)."""
    generator = np.random.default_rng(seed)
    problem, start = random_quadratic(5, 50.0, generator), random_start(5, 3, generator)
    other = Quadratic(factor * problem.A, factor * problem.b)
    run = DETERMINISTIC[name](problem).run(problem, start, iterations=10)
    scaled = DETERMINISTIC[name](other).run(other, start, iterations=10)
    length = min(len(run.weights), len(scaled.weights))
    np.testing.assert_allclose(run.weights[:length], scaled.weights[:length], rtol=1e-6, atol=1e-8)


def test_straight_through_cycles_for_ever():
    """STE has no fixed point unless the gradient vanishes (alternatives to PV).

    phi = 1/2 ||x - (1/4, 3/8)||^2 on the fixed grid {0, 1}: the best point is (0, 0), where the
    gradient is (-1/4, -3/8). The buffer collects it until it passes 1/2, the code flips to 1, the
    gradient changes sign and carries it back: a rotation with periods 4 and 8, exact in binary.
    It starts at the optimum 0, leaves it, and comes back in every period of 8; the objective
    averages 7/64, what the linear rule of stochastic rounding expects. Linearized PV stays at 0.
    """
    problem = Quadratic(np.eye(2), np.array([0.25, 0.375]))
    start = Point(np.array([0, 0]), np.array([0.0, 1.0]))
    method = recipes.ste(p_step=KeepValues())
    run = method.run(problem, start, iterations=800)
    codes, objective = run.codes[::2], run.objective[::2]
    assert run.stop_reason == "iteration limit"
    assert not run.is_monotone()
    assert np.array_equal(codes[8:], codes[:-8])
    assert not np.array_equal(codes[4:8], codes[:4])
    assert codes[:800].mean(0).tolist() == [0.25, 0.375]  # time at 1 = the unrounded optimum
    assert objective.min() == objective[0] == 0.0
    assert objective.max() == 0.375
    assert objective[:800].mean() == 7 / 64
    pv = recipes.linearized_pv(p_step=KeepValues()).run(problem, start)
    assert pv.stop_reason == "fixed point"
    assert pv.objective[-1] == 0.0
    exact = ExactV().step(problem, start)
    assert exact.point.codes.tolist() == [0, 0]


@some
@given(
    seed=SEEDS,
    decay=st.sampled_from([0.0, 0.3, 1.0]),
    size=st.integers(1, 4),
    simultaneous=st.booleans(),
)
def test_linearized_methods_equal_a_plain_loop(seed, decay, size, simultaneous):
    """The table of alternatives: one gradient P step, then round b + u in the top coordinates."""
    generator = np.random.default_rng(seed)
    problem, start = random_quadratic(4, 50.0, generator), random_start(4, 3, generator)
    rate = 1 / problem.smoothness
    v_step = LinearizedV(subspace=Greedy(size), step_size=rate, latent_decay=decay)
    method = Method(p_step=GradientP(rate), v_step=v_step, simultaneous=simultaneous)
    run = method.run(problem, start, iterations=12)

    codes, values = start.codes.copy(), start.values.copy()
    buffer = values[codes]
    for k in range(len(run.smoothness)):
        gradient = problem.A @ values[codes] - problem.b
        for j in range(3):
            values[j] -= rate * gradient[codes == j].sum()
        np.testing.assert_allclose(run.weights[2 * k + 1], values[codes], atol=1e-9)
        if not simultaneous:
            gradient = problem.A @ values[codes] - problem.b
            if decay == 1:
                buffer = values[codes]
        target = buffer - rate * gradient
        largest = np.argsort(-np.abs(target - values[codes]), kind="stable")[:size]
        for i in largest:
            codes[i] = np.abs(values - target[i]).argmin()
        buffer = (1 - decay) * target + decay * values[codes]
        np.testing.assert_allclose(run.weights[2 * k + 2], values[codes], atol=1e-9)
        assert np.array_equal(run.codes[2 * k + 2], codes)


def test_a_batch_of_runs_is_its_rows():
    generator = np.random.default_rng(0)
    problem, start = random_quadratic(6, 100.0, generator), random_start(6, 3, generator, runs=5)
    for method in (recipes.exact_pv(), recipes.subspace_pv(Gain()), recipes.ste()):
        together = method.run(problem, start, iterations=15)
        for run in range(5):
            alone = method.run(problem, start[run], iterations=15)
            assert together.objective[-1, run] == pytest.approx(float(alone.objective[-1]))
            assert together.iterations[run] == alone.iterations


def test_random_methods_repeat_by_their_generator():
    problem = random_quadratic(6, 100.0, np.random.default_rng(0))
    start = random_start(6, 3, np.random.default_rng(1), runs=5)
    for method in (recipes.stochastic_rounding(), recipes.subspace_pv(Uniform())):
        runs = [
            method.run(problem, start, iterations=15, generator=np.random.default_rng(seed))
            for seed in (0, 0, 1)
        ]
        assert np.array_equal(runs[0].codes, runs[1].codes)
        assert not np.array_equal(runs[0].codes, runs[2].codes)
        assert runs[0].stop_reason == "iteration limit"


def test_invalid_runs_are_named():
    problem = Quadratic(np.eye(2), np.ones(2))
    start = Point(np.array([0, 0]), np.zeros(1))
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        recipes.ste().run(problem, start, iterations=0)
    with pytest.raises(ValueError, match="start must have 2 codes per run, got 3"):
        recipes.ste().run(problem, Point(np.array([0, 0, 0]), np.zeros(1)))
