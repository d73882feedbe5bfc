"""Compositions of all parts, an optimizer for each, and what every one must fulfil."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pvopt import (
    Diagonal,
    InputMetric,
    MetricSource,
    Parametrization,
    PVOptimizer,
    QuantizedWeights,
    Representation,
    Rounding,
    Row,
    Scheme,
    SecondMoment,
    Space,
    Subspace,
)
from pvopt.engine.v_step import v_step_task

SHAPE, STEPS = (6, 8), 4


@dataclass(frozen=True)
class Composition:
    """One way to put the parts together."""

    parametrization: Parametrization
    space: Space
    rounding: Rounding
    subspace: Subspace
    latent_decay: float
    dtype: torch.dtype
    trust_ratio: float | None
    metric: str | None

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        parts = (self.parametrization, self.space, self.rounding, self.subspace)
        last = (self.latent_decay, dtype, self.trust_ratio, self.metric)
        return "-".join(str(part) for part in (*parts, *last))

    @property
    def scheme(self) -> Scheme:
        return Scheme(self.parametrization, self.space)


@functools.cache
def fits(parametrization: Parametrization, rounding: Rounding) -> bool:
    try:
        rounding.check(parametrization)
    except TypeError:
        return False
    return True


@functools.cache
def takes(space: Space, metric: str | None) -> bool:
    """Whether groups live in a space where the metric is what a V step can search in."""
    if metric is None:
        return True
    given = {"second moment": torch.ones(SHAPE), "inputs": torch.eye(SHAPE[1])}[metric]
    source = Diagonal(given) if metric == "second moment" else Row(given)
    codes, values = space.start(torch.ones(SHAPE), None)
    try:
        space.enter_metric(source, SHAPE, {**codes, **values})
    except TypeError:
        return False
    return True


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Run:
    """Least-squares problems ||W X - Y||^2 / n, one for each weight, and an optimizer for all."""

    def __init__(
        self, how: Composition, seed: int = 0, start: int = 0, names: Sequence[str] = ("a",)
    ) -> None:
        self.how = how
        self.model = nn.ParameterDict(
            {name: gaussian(start + 10 * ord(name), *SHAPE).to(how.dtype) for name in names}
        )
        reps = {name: how.scheme.fit(weight) for name, weight in self.model.items()}
        self.weights = QuantizedWeights(self.model, reps)
        self.weights.write_()
        self.inputs = gaussian(1, SHAPE[1], 16).to(how.dtype)
        self.outputs = gaussian(2, SHAPE[0], 16).to(how.dtype)
        self.optimizer = PVOptimizer(
            torch.optim.Adam(self.model.parameters(), lr=0.1),
            self.weights,
            rounding=how.rounding,
            subspace=how.subspace,
            latent_decay=how.latent_decay,
            trust_ratio=how.trust_ratio,
            metric=self.metric(),
            seed=seed,
        )

    @property
    def rep(self) -> Representation:
        return self.weights["a"]

    @property
    def parameter(self) -> nn.Parameter:
        return self.model["a"]

    def metric(self) -> MetricSource | None:
        if self.how.metric is None:
            return None
        if self.how.metric == "second moment":
            return SecondMoment()
        return InputMetric(dict.fromkeys(self.weights, self.inputs @ self.inputs.T))

    def step(self) -> float:
        self.optimizer.zero_grad()
        losses = [(w @ self.inputs - self.outputs).square().mean() for w in self.model.values()]
        loss = torch.stack(losses).sum()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {"weight": self.parameter.detach(), "optimizer": self.optimizer.state_dict()}

    def state_of(self, name: str) -> dict[str, Any]:
        """Everything about one weight: the decoded one, codes, values, moments, latent."""
        parameter = self.model[name]
        return {"weight": parameter.detach(), **self.optimizer.state[parameter]}


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def selected(how: Composition, num_groups: int) -> int:
    count = getattr(how.subspace, "count", None)
    return num_groups if count is None else count(num_groups)


def weights_before_v_steps(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Record the weights that each V step starts from."""
    found: list[Tensor] = []

    def recorded(rep: Representation, targets: Sequence[Tensor], **rules: Any) -> Any:
        found.append(rep.decode().clone())
        return v_step_task(rep, targets, **rules)

    monkeypatch.setattr("pvopt.optimizer.v_step_task", recorded)
    return found


def check_steps(how: Composition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert what every optimizer step owes, whatever it is composed of."""
    run, twin = Run(how), Run(how)
    rep: Representation = run.rep
    before = weights_before_v_steps(monkeypatch)
    for step in range(STEPS):
        codes = rep.group_codes().clone()
        run.step()
        # the weight is always decode(codes, values), cast
        assert torch.equal(run.parameter, rep.decode().to(how.dtype))
        assert bool(run.parameter.isfinite().all())
        rep.check_codes()
        # no more groups move than were selected, and the report tells how many
        moved = int((rep.group_codes() != codes).any(-1).sum())
        assert moved == run.optimizer.report.changed_groups
        assert moved <= selected(how, rep.layout.num_groups)
        # the V step, between the weight after the P step and the new one, is in the trust region
        change = float((rep.decode() - before[-1]).norm())
        if how.trust_ratio is not None and moved > 1:
            assert change <= how.trust_ratio * float(before[-1].norm()) * (1 + 1e-5)
        assert ("pv.latent" in run.optimizer.state[run.parameter]) == (how.latent_decay < 1)
        # the same seed repeats everything, a state dict continues it from another start
        if step == 1:
            saved = copy.deepcopy(run.state())
            other = Run(how, start=7)
            other.optimizer.load_state_dict(saved["optimizer"])
            assert_same(other.state(), saved)
        if step >= 2:
            other.step()
            assert_same(other.state(), run.state())
        twin.step()
        assert_same(twin.state(), run.state())


def check_stacks(how: Composition) -> None:
    """Assert that a weight does not notice, in a single bit, that it is in a stack.

    Random draws included: they follow from seed, name and step.
    """
    alone = {name: Run(how, names=name) for name in "abc"}
    together = Run(how, names="abc")
    if how.space.trivial and how.parametrization.stacks:
        assert len(together.optimizer._stacks) == 1
    for _ in range(STEPS):
        together.step()
        for name, run in alone.items():
            run.step()
            assert_same(together.state_of(name), run.state_of(name))


def check_learning(how: Composition) -> None:
    """Assert that steps lower the loss."""
    run = Run(how)
    losses = [run.step() for _ in range(30)]
    assert min(losses[-5:]) < 0.8 * losses[0]
