"""One oracle for the optimizer: PVOptimizer with SGD(1/L) is pvopt.convex, step by step.

The loss is written again in torch, so the gradients come from autograd and from NumPy. Problems and
starts are generic (Gaussian values, no two equal): no target ties between two values and no two
updates are equally large, where the two programs may choose differently.

With ``Simultaneous`` one gradient serves both half steps, ``Method(simultaneous=True)``.
``Alternate(p=1, v=1)`` takes a gradient per half step, as the plain method does; without a latent
weight the two are equal. With one they differ in exactly one thing: torch adds the base optimizer's
update to the latent weight in P phases too, while the oracle takes gradients for the latent weight
in V steps only. There the oracle's V step is started from its own buffer plus the P phase's update.

A diagonal metric D needs a base optimizer that divides by it: ``DiagonalStep``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pvopt import (
    AllGroups,
    Alternate,
    Diagonal,
    MetricSource,
    Nearest,
    Phases,
    PVOptimizer,
    Representation,
    Row,
    SGDValues,
    SharedValues,
    Simultaneous,
    Subspace,
    continuous_only,
    naive_pv,
    ste,
    subspace_pv,
    subspace_pv_ste,
    v_step,
)
from pvopt import Gain as TorchGain
from pvopt import Greedy as TorchGreedy
from pvopt.convex import (
    AllCoordinates,
    Gain,
    GradientP,
    Greedy,
    KeepCodes,
    LeastSquares,
    LinearizedV,
    Logistic,
    Method,
    Point,
    Problem,
    Quadratic,
    SubspaceRule,
    diagonal_metric,
    random_least_squares,
    random_logistic,
    random_quadratic,
    random_start,
)

STEPS = 12
some = settings(max_examples=6, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Recipe:
    """A torch recipe and the settings of the V step it stands for."""

    make: Callable[..., PVOptimizer]
    greedy: bool = False
    v_step: dict[str, Any] = field(default_factory=dict)

    def optimizer(
        self, parameter: nn.Parameter, rep: Representation, size: int, rate: float, **options: Any
    ) -> PVOptimizer:
        if "latent_decay" not in self.v_step:
            options["code_lr_ratio"] = 1.0  # the theory's step is the base's
        if self.greedy:
            options["subspace"] = TorchGreedy(size / parameter.numel())
            options["trust_ratio"] = self.v_step.get("trust_ratio")
        elif self.v_step.get("latent_decay", 1.0) < 1.0:
            options["latent_decay"] = self.v_step["latent_decay"]
        return self.make(torch.optim.SGD([parameter], lr=rate), {parameter: rep}, **options)

    def oracle(self, size: int, rate: float) -> LinearizedV | KeepCodes:
        if self.make is continuous_only:
            return KeepCodes()
        subspace = {"subspace": Greedy(size)} if self.greedy else {}
        return LinearizedV(step_size=rate, **subspace, **self.v_step)


RECIPES = {
    "continuous_only": Recipe(continuous_only),
    "ste": Recipe(ste, v_step={"latent_decay": 0.0}),
    "penalised ste": Recipe(ste, v_step={"latent_decay": 0.3}),
    "naive_pv": Recipe(naive_pv),
    "subspace_pv": Recipe(subspace_pv, greedy=True),
    "subspace_pv, trust region": Recipe(subspace_pv, greedy=True, v_step={"trust_ratio": 0.2}),
    "subspace_pv_ste": Recipe(subspace_pv_ste, greedy=True, v_step={"latent_decay": 0.0}),
    "subspace_pv_ste, trust region": Recipe(
        subspace_pv_ste, greedy=True, v_step={"latent_decay": 0.0, "trust_ratio": 0.2}
    ),
}


def torch_loss(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Return the objective of a problem, written for torch."""
    if isinstance(problem, Quadratic):
        A, b = torch.from_numpy(problem.A), torch.from_numpy(problem.b)
        return lambda w: w @ A @ w / 2 - b @ w
    if isinstance(problem, LeastSquares):
        X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)
        return lambda w: (X @ w - y).square().sum() / 2
    assert isinstance(problem, Logistic)
    X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)
    softplus = nn.functional.softplus
    return lambda w: (
        softplus(-y * (X @ w), threshold=1e3).mean() + problem.l2 * w.square().sum() / 2
    )


class Case:
    """A random problem, a start, and the same start as a torch representation."""

    def __init__(self, seed: int, kind: str) -> None:
        generator = np.random.default_rng(seed)
        dimension, num_values = (int(generator.integers(1, most + 1)) for most in (12, 6))
        condition = 10 ** generator.uniform(0, 3)
        if kind == "quadratic":
            self.problem: Problem = random_quadratic(dimension, condition, generator)
        elif kind == "least squares":  # about half of them rank-deficient
            samples = int(generator.integers(1, 2 * dimension + 1))
            self.problem = random_least_squares(samples, dimension, condition, generator)
        else:
            self.problem = random_logistic(20, dimension, min(condition, 50), 0.1, generator)
        self.start = random_start(dimension, num_values, generator)
        self.size = int(generator.integers(1, dimension + 1))
        self.rate = 1 / self.problem.smoothness
        # Blocks make the P step's own constant up to d times larger: 1/d never diverges, while 1
        # covers the usual setting.
        self.ratio = float(generator.choice([1.0, 1 / dimension]))
        self.loss = torch_loss(self.problem)
        self.rep = Representation(
            SharedValues(num_values=num_values),
            {"entries": torch.from_numpy(self.start.codes).to(torch.uint8).view(1, dimension, 1)},
            {"values": torch.from_numpy(self.start.values.copy())},
            (dimension,),
        )
        self.parameter = nn.Parameter(self.rep.decode())

    def optimizer(self, recipe: Recipe, phases: Phases) -> PVOptimizer:
        return recipe.optimizer(
            self.parameter,
            self.rep,
            self.size,
            self.rate,
            values=SGDValues(self.ratio),
            phases=phases,
        )

    def step(self, optimizer: PVOptimizer) -> float:
        """Take a step; return the objective before it."""
        optimizer.zero_grad()
        loss = self.loss(self.parameter)
        loss.backward()
        optimizer.step()
        return loss.item()

    def assert_at(self, point: Point) -> None:
        scale = float(np.abs(point.values).max())
        values = self.rep.values["values"].numpy()
        assert np.array_equal(self.rep.group_codes().flatten().numpy(), point.codes)
        np.testing.assert_allclose(values, point.values, rtol=1e-9, atol=1e-9 * scale)
        np.testing.assert_array_equal(self.parameter.detach().numpy(), values[point.codes])

    def assert_objective(self, found: float, point: Point) -> None:
        # Terms of this size cancel in the objective.
        scale = 1 + self.problem.smoothness * float(np.square(point.weights).sum())
        assert found == pytest.approx(self.problem.value(point.weights), abs=1e-11 * scale)


@pytest.mark.parametrize("kind", ["quadratic", "least squares", "logistic"])
@pytest.mark.parametrize("name", RECIPES)
@some
@given(seed=st.integers(0, 2**32 - 1))
def test_simultaneous_steps_equal_the_oracle(name: str, kind: str, seed: int) -> None:
    case, recipe = Case(seed, kind), RECIPES[name]
    v_step = recipe.oracle(case.size, case.rate)
    p_step = GradientP(case.rate * case.ratio)
    method = Method(p_step=p_step, v_step=v_step, simultaneous=True)
    run = method.run(case.problem, case.start, iterations=STEPS)
    optimizer = case.optimizer(recipe, Simultaneous())
    for half in range(0, len(run.objective) - 1, 2):
        case.assert_objective(case.step(optimizer), run.point(half))
        case.assert_at(run.point(half + 2))
    if run.stop_reason == "fixed point":
        case.step(optimizer)
        case.assert_at(run.final)


@pytest.mark.parametrize("kind", ["quadratic", "least squares", "logistic"])
@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if "latent_decay" not in r.v_step])
@some
@given(seed=st.integers(0, 2**32 - 1))
def test_alternating_steps_without_a_latent_equal_the_oracle(
    name: str, kind: str, seed: int
) -> None:
    """Every half step: torch's P phase ends at y^k, its V phase at x^{k+1}."""
    case, recipe = Case(seed, kind), RECIPES[name]
    p_step = GradientP(case.rate * case.ratio)
    method = Method(p_step=p_step, v_step=recipe.oracle(case.size, case.rate))
    run = method.run(case.problem, case.start, iterations=STEPS)
    optimizer = case.optimizer(recipe, Alternate(p=1, v=1))
    for half in range(len(run.objective) - 1):
        case.assert_objective(case.step(optimizer), run.point(half))
        case.assert_at(run.point(half + 1))


@pytest.mark.parametrize("kind", ["quadratic", "least squares", "logistic"])
@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if "latent_decay" in r.v_step])
@some
@given(seed=st.integers(0, 2**32 - 1))
def test_alternating_steps_also_collect_the_updates_of_p_phases(
    name: str, kind: str, seed: int
) -> None:
    """V phase k rounds ``b - lr g(x^k) - lr g(y^k)``, where the oracle has no ``g(x^k)``."""
    case, recipe = Case(seed, kind), RECIPES[name]
    problem, point, buffer = case.problem, case.start, case.start.weights
    p_step, v_step = GradientP(case.rate * case.ratio), recipe.oracle(case.size, case.rate)
    optimizer = case.optimizer(recipe, Alternate(p=1, v=1))
    for _ in range(STEPS):
        buffer = buffer - case.rate * problem.gradient(point.weights)
        fitted = p_step.step(problem, point)
        case.assert_objective(case.step(optimizer), point)
        case.assert_at(fitted)
        outcome = v_step.step(problem, fitted, buffer=buffer)
        case.assert_objective(case.step(optimizer), fitted)
        case.assert_at(outcome.point)
        latent = optimizer.state[case.parameter]["pv.latent"].numpy()
        scale = float(np.abs(outcome.buffer).max())
        np.testing.assert_allclose(latent, outcome.buffer, rtol=1e-9, atol=1e-9 * scale)
        point, buffer = outcome.point, outcome.buffer


class DiagonalStep(torch.optim.Optimizer):
    """The base optimizer whose step is ``-D^-1 g``; its learning rate is for the values."""

    def __init__(self, parameter: nn.Parameter, rate: float, metric: Tensor) -> None:
        super().__init__([parameter], {"lr": rate})
        self.metric = metric

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad / self.metric)


class OwnMetric(MetricSource):
    """The metric that the base optimizer divides by."""

    def of(self, name: Any, parameter: Any, group: Any, base: Any) -> Diagonal:
        return Diagonal(base.metric)


METRICS: dict[str, Callable[[Problem], np.ndarray]] = {
    "diagonal": lambda problem: np.diag(problem.curvature).copy(),
    "above the Hessian": lambda problem: diagonal_metric(problem.curvature),
}


@pytest.mark.parametrize(
    ("metric", "rule"),  # the oracle's gain is in terms of diag(A)
    [(metric, rule) for metric in METRICS for rule in ("all", "greedy")] + [("diagonal", "gain")],
)
@some
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["quadratic", "logistic"]))
def test_steps_in_a_diagonal_metric_equal_the_oracle(
    metric: str, rule: str, kind: str, seed: int
) -> None:
    """Gain with D = diag(A) is the convex gain rule; with D above A no half step hurts."""
    case = Case(seed, kind)
    d, m = METRICS[metric](case.problem), case.size
    fraction = m / len(d)
    torch_rules = {"all": AllGroups(), "greedy": TorchGreedy(fraction), "gain": TorchGain(fraction)}
    rules = {"all": AllCoordinates(), "greedy": Greedy(m), "gain": Gain(m)}
    theirs: Subspace = torch_rules[rule]
    ours: SubspaceRule = rules[rule]
    rate = case.rate / len(d)
    method = Method(p_step=GradientP(rate), v_step=LinearizedV(metric=d, subspace=ours))
    run = method.run(case.problem, case.start, iterations=STEPS)
    optimizer = PVOptimizer(
        DiagonalStep(case.parameter, rate, torch.from_numpy(d)),
        {case.parameter: case.rep},
        subspace=theirs,
        values=SGDValues(),
        metric=OwnMetric(),
        phases=Alternate(p=1, v=1),
        latent_decay=1.0,
        code_lr_ratio=1.0,
    )
    found = []
    for half in range(len(run.objective) - 1):
        found.append(case.step(optimizer))
        case.assert_at(run.point(half + 1))
    if metric == "above the Hessian" or (rule == "gain" and m == 1):
        slack = 1e-11 * (1 + np.abs(found).max() + case.problem.smoothness)
        assert bool((np.diff(found) <= slack).all())


@some
@given(seed=st.integers(0, 2**32 - 1), rule=st.sampled_from(["all", "greedy", "gain"]))
def test_a_newton_step_in_the_metric_of_the_hessian_never_hurts(seed: int, rule: str) -> None:
    """With D = H = X'X the bound is the loss: V steps lower it, to a coordinate-wise optimum."""
    case = Case(seed, "least squares")
    problem = case.problem
    rules = {"all": AllGroups(), "greedy": TorchGreedy(0.3), "gain": TorchGain(0.3)}
    hessian = torch.from_numpy(problem.curvature)
    rep, scale = case.rep, 1 + problem.smoothness * float(np.square(case.start.weights).sum())
    goal = torch.linalg.lstsq(
        torch.from_numpy(problem.X), torch.from_numpy(problem.y)[:, None], driver="gelsd"
    ).solution[:, 0]
    before = float(problem.value(rep.decode().numpy()))
    for _ in range(20):
        moved = v_step(
            rep,
            goal,  # y - H^-1 g, up to directions that the loss does not see
            rounding=Nearest(),
            subspace=rules[rule],
            metric=Row(hessian),
        )
        after = float(problem.value(rep.decode().numpy()))
        assert after <= before + 1e-11 * scale
        before = after
    if rule == "greedy":
        return  # may keep groups that cannot move
    assert moved == 0
    weights, values = rep.decode().numpy(), rep.values["values"].numpy()
    for i, value in np.ndindex(len(weights), len(values)):
        other = weights.copy()
        other[i] = values[value]
        assert problem.value(other) >= before - 1e-9 * scale
