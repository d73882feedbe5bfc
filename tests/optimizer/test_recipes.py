"""Each recipe against a loop written from its row of the table of methods.

With b the latent, w = decode(z, v) the weight, u the base optimizer's update and S a choice of
groups, one step is: t = b + u (b = w where no latent is kept), v <- v - lr E'g, z_i <- the value
next to t_i for i in S inside the trust region, w = v[z], b <- (1 - rho) t + rho w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pvopt import (
    AdamValues,
    AllGroups,
    Forced,
    Greedy,
    Nearest,
    PVOptimizer,
    Representation,
    SGDValues,
    SharedValues,
    Stochastic,
    continuous_only,
    naive_pv,
    ste,
    stochastic_rounding,
    subspace_pv,
    subspace_pv_ste,
)

SIZE, LEVELS, LR, RATIO = 40, 6, 0.1, 0.25


@dataclass
class Reference:
    """One weight in R^d_{<=c}, stepped by hand in float64."""

    codes: np.ndarray
    values: np.ndarray
    fraction: float = 1.0
    trust: float | None = None
    rho: float = 1.0
    frozen: bool = False
    forced: bool = False
    code_lr_ratio: float = 1.0
    adam: bool = False
    latent: np.ndarray | None = None
    moments: tuple[Any, Any] = (0.0, 0.0)
    steps: int = 0
    calls: int = 0

    @property
    def weight(self) -> np.ndarray:
        return self.values[self.codes]

    def update(self, gradient: np.ndarray) -> np.ndarray:
        """The base optimizer's update."""
        if not self.adam:
            return -LR * gradient
        self.steps += 1
        m, v = self.moments
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        self.moments = m, v
        m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
        return -LR * m_hat / (np.sqrt(v_hat) + 1e-8)

    def step(self, gradient: np.ndarray) -> None:
        start = self.weight if self.latent is None or self.rho == 1 else self.latent
        update = self.update(gradient)
        target = start + update
        self.calls += 1
        pulled = np.zeros(LEVELS)
        np.add.at(pulled, self.codes, gradient)
        self.values = self.values - LR * RATIO * pulled
        if self.frozen:
            return
        weight = self.weight
        asked = np.abs(target - weight)
        if self.calls == 1:  # groups that ask for equal changes are told apart by their gradients
            size = np.abs(gradient)
            asked = asked * (1 + 1e-3 * size / (size + size.mean()))
        target = target + (self.code_lr_ratio - 1) * update
        order = np.argsort(-asked, kind="stable")[: int(np.ceil(self.fraction * SIZE))]
        budget = np.inf if self.trust is None else (self.trust * np.linalg.norm(weight)) ** 2
        codes, spent, accepted = self.codes.copy(), 0.0, 0
        for i in order:
            distances = np.abs(self.values - target[i])
            if self.forced:
                distances[self.codes[i]] = np.inf
            best = int(np.argmin(distances))
            if best == self.codes[i] or distances[best] == distances[self.codes[i]]:
                continue
            spent += (self.values[best] - weight[i]) ** 2
            if spent > budget and accepted:
                break
            codes[i] = best
            accepted += 1
        self.codes = codes
        self.latent = (1 - self.rho) * target + self.rho * self.weight


def problem() -> tuple[nn.Parameter, Representation, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    codes = generator.integers(LEVELS, size=SIZE)
    values = np.linspace(-1, 1, LEVELS) + 0.1 * generator.standard_normal(LEVELS)
    matrix = generator.standard_normal((SIZE, SIZE))
    matrix = matrix @ matrix.T / SIZE + np.eye(SIZE)
    rep = Representation(
        SharedValues(num_values=LEVELS),
        {"entries": torch.from_numpy(codes).to(torch.uint8).view(1, SIZE, 1)},
        {"values": torch.from_numpy(values.copy())},
        (SIZE,),
    )
    goal = 1.5 * generator.standard_normal(SIZE)
    return nn.Parameter(rep.decode()), rep, matrix, goal


RECIPES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "continuous_only": (continuous_only, {}, {"frozen": True}),
    "ste": (ste, {}, {"rho": 0.0}),
    "penalised ste": (ste, {"latent_decay": 0.2}, {"rho": 0.2}),
    "stochastic_rounding, cold": (
        stochastic_rounding,
        {"rounding": Stochastic("power", temperature=1e-9)},
        {},
    ),
    "naive_pv": (naive_pv, {}, {}),
    "subspace_pv": (
        subspace_pv,
        {"subspace": Greedy(0.2), "trust_ratio": 0.1, "code_lr_ratio": 1.0},
        {"fraction": 0.2, "trust": 0.1},
    ),
    "subspace_pv, longer steps on codes": (
        subspace_pv,
        {"subspace": Greedy(0.2), "trust_ratio": 0.1, "code_lr_ratio": 4.0},
        {"fraction": 0.2, "trust": 0.1, "code_lr_ratio": 4.0},
    ),
    "subspace_pv, forced": (
        subspace_pv,
        {"subspace": Greedy(0.1), "rounding": Forced(), "trust_ratio": None, "code_lr_ratio": 1.0},
        {"fraction": 0.1, "forced": True},
    ),
    "subspace_pv_ste": (
        subspace_pv_ste,
        {"subspace": Greedy(0.2), "trust_ratio": 0.1},
        {"fraction": 0.2, "trust": 0.1, "rho": 0.0},
    ),
    "subspace_pv_ste, defaults": (
        subspace_pv_ste,
        {},
        {"fraction": 0.01, "trust": 0.01, "rho": 0.0},
    ),
}


@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_its_row_of_the_table(name, adam):
    recipe, options, settings = RECIPES[name]
    parameter, rep, matrix, goal = problem()
    reference = Reference(
        rep.group_codes()[:, 0].long().numpy().copy(),
        rep.values["values"].numpy().copy(),
        adam=adam,
        **settings,
    )
    base = (torch.optim.Adam if adam else torch.optim.SGD)([parameter], lr=LR)
    optimizer = recipe(base, {parameter: rep}, values=SGDValues(lr_ratio=RATIO), **options)
    moved = 0
    for _ in range(12):
        gradient = matrix @ (reference.weight - goal)
        parameter.grad = torch.from_numpy(matrix @ (parameter.detach().numpy() - goal))
        before = reference.codes
        reference.step(gradient)
        optimizer.step()
        moved += int((before != reference.codes).sum())
        assert rep.group_codes()[:, 0].tolist() == reference.codes.tolist()
        np.testing.assert_allclose(rep.values["values"].numpy(), reference.values, atol=1e-12)
        np.testing.assert_allclose(parameter.detach().numpy(), reference.weight, atol=1e-12)
        if settings.get("rho", 1.0) < 1:
            latent = optimizer.state[parameter]["pv.latent"].numpy()
            np.testing.assert_allclose(latent, reference.latent, atol=1e-12)
        else:
            assert "pv.latent" not in optimizer.state[parameter]
    assert (moved == 0) == (name == "continuous_only")


def test_stochastic_rounding_takes_one_of_the_two_values_around_the_target():
    parameter, rep, matrix, goal = problem()
    base = torch.optim.SGD([parameter], lr=LR)
    optimizer = stochastic_rounding(base, {parameter: rep}, values=SGDValues(lr_ratio=RATIO))
    assert optimizer.rounding == Stochastic("linear")
    assert isinstance(optimizer.subspace, AllGroups)
    farther = 0
    for _ in range(10):
        gradient = matrix @ (parameter.detach().numpy() - goal)
        target = parameter.detach().numpy() - LR * gradient
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        values = np.sort(rep.values["values"].numpy())
        above = np.searchsorted(values, target).clip(0, LEVELS - 1)
        below = np.where(target > values[-1], LEVELS - 1, (above - 1).clip(0))
        taken = rep.values["values"].numpy()[rep.group_codes()[:, 0].long().numpy()]
        assert bool(((taken == values[above]) | (taken == values[below])).all())
        nearest = values[np.abs(target[:, None] - values).argmin(1)]
        farther += int((taken != nearest).sum())
    assert 0 < farther < 10 * SIZE / 2


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (ste, (AllGroups(), None, 0.0)),
        (naive_pv, (AllGroups(), None, 1.0)),
        (stochastic_rounding, (AllGroups(), None, 1.0)),
        (subspace_pv, (Greedy(0.01), 0.01, 1.0)),
        (subspace_pv_ste, (Greedy(0.01), 0.01, 0.0)),
    ],
)
def test_a_recipe_is_one_composition(recipe, expected):
    parameter, rep, _, _ = problem()
    optimizer = recipe(torch.optim.SGD([parameter], lr=0.1), {parameter: rep})
    group = optimizer.param_groups[0]
    assert type(optimizer) is PVOptimizer
    assert (optimizer.subspace, group["trust_ratio"], group["latent_decay"]) == expected
    assert type(optimizer.rounding) is (Stochastic if recipe is stochastic_rounding else Nearest)
    assert isinstance(optimizer.values, AdamValues)
    changed = recipe(
        torch.optim.SGD([parameter], lr=0.1),
        {parameter: rep},
        latent_decay=0.5,
        values=SGDValues(),
        seed=4,
    )
    assert changed.param_groups[0]["latent_decay"] == 0.5
    assert changed.param_groups[0]["seed"] == 4
    assert isinstance(changed.values, SGDValues)


def test_adam_on_values_equals_torchs_adam():
    """With relative=False it is Adam; relative steps are those times the rms of the values."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    for relative in (False, True):
        value, twin = start.clone(), nn.Parameter(start.clone())
        rule = AdamValues(betas=(0.8, 0.9), eps=1e-6, relative=relative)
        adam = torch.optim.Adam([twin], lr=0.1, betas=(0.8, 0.9), eps=1e-6)
        moments = {name: [torch.zeros_like(value)] for name in rule.moments}
        for step in range(1, 6):
            gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64)
            adam.param_groups[0]["lr"] = 0.1 * float(
                value.square().mean().sqrt() if relative else 1
            )
            twin.grad = gradient.clone()
            adam.step()
            rule.move_([value], [gradient], moments, [0.1], [step], [None])
            rule.remember_([gradient], moments)
            torch.testing.assert_close(value, twin.detach(), rtol=1e-10, atol=1e-12)


def test_momentum_on_values_equals_torchs_sgd():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(5, generator=generator, dtype=torch.float64)
    twin = nn.Parameter(value.clone())
    sgd = torch.optim.SGD([twin], lr=0.1, momentum=0.7)
    rule = SGDValues(momentum=0.7)
    moments = {name: [torch.zeros_like(value)] for name in rule.moments}
    assert SGDValues().moments == ()
    for step in range(1, 6):
        gradient = torch.randn(5, generator=generator, dtype=torch.float64)
        twin.grad = gradient.clone()
        sgd.step()
        rule.move_([value], [gradient], moments, [0.1], [step], [None])
        rule.remember_([gradient], moments)
        torch.testing.assert_close(value, twin.detach())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SGDValues(lr_ratio=-1.0), "lr_ratio must not be negative, got -1.0"),
        (lambda: SGDValues(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: AdamValues(betas=(0.9, 1.0)), r"betas\[1\] must be in \[0, 1\), got 1.0"),
        (lambda: AdamValues(eps=0.0), "eps must be positive, got 0.0"),
    ],
)
def test_bad_value_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
