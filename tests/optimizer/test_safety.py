"""Nothing moves without a reason, and nothing at all on a bad gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pvopt import (
    AllGroups,
    Forced,
    Greedy,
    NonFiniteGradientError,
    PVOptimizer,
    SGDValues,
    Stochastic,
    UniformGrid,
)

RULES: dict[str, dict[str, Any]] = {
    "nearest": {"subspace": AllGroups()},
    "forced": {"rounding": Forced(), "subspace": Greedy(0.3)},
    "stochastic": {"rounding": Stochastic(), "subspace": AllGroups()},
    "ste": {"subspace": AllGroups(), "latent_decay": 0.0},
    "penalised": {"subspace": Greedy(0.5), "latent_decay": 0.3, "trust_ratio": 0.1},
}


def snapshot(setup: Any) -> Any:
    return copy.deepcopy(
        (
            dict(setup.model.state_dict()),
            {name: dict(rep.tensors()) for name, rep in setup.weights.items()},
        )
    )


def zero_gradients(setup: Any) -> None:
    for p in setup.model.parameters():
        p.grad = torch.zeros_like(p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("steps", [0, 3])
def test_zero_gradients_with_lr_zero_move_nothing(make_setup, assert_same, dtype, rules, steps):
    """Also where a latent weight differs from the weight, or momentum would move on."""
    setup = make_setup(dtype=dtype)
    base = torch.optim.AdamW(setup.model.parameters(), lr=0.05, weight_decay=0.1)
    optimizer = PVOptimizer(base, setup.weights, **RULES[rules])
    for _ in range(steps):
        setup.backward()
        optimizer.step()
    before = snapshot(setup)
    latents = {
        name: optimizer.state[p]["pv.latent"].clone()
        for name, p, _ in optimizer.named_representations()
        if "pv.latent" in optimizer.state[p]
    }
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    zero_gradients(setup)
    optimizer.step()
    assert_same(snapshot(setup), before)
    assert optimizer.report.changed_groups == 0
    if "latent_decay" in RULES[rules] and steps:
        assert len(latents) == 2
        for name, p, rep in optimizer.named_representations():
            assert torch.equal(optimizer.state[p]["pv.latent"], latents[name])
            assert not torch.equal(latents[name], rep.decode())


@pytest.mark.parametrize("rules", ["nearest", "forced", "stochastic"])
def test_zero_gradients_move_nothing_without_a_latent_either(make_setup, assert_same, rules):
    setup = make_setup()
    base = torch.optim.SGD(setup.model.parameters(), lr=0.5)
    optimizer = PVOptimizer(base, setup.weights, **RULES[rules], values=SGDValues())
    before = snapshot(setup)
    zero_gradients(setup)
    optimizer.step()
    assert_same(snapshot(setup), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "2.weight", "2.bias"])
@pytest.mark.parametrize("rules", ["ste", "stochastic"])
def test_a_bad_gradient_changes_nothing_and_is_named(make_setup, assert_same, bad, name, rules):
    setup = make_setup()
    base = torch.optim.Adam(setup.model.named_parameters(), lr=0.05)
    optimizer = PVOptimizer(base, setup.weights, **RULES[rules])
    twin = make_setup()
    other = PVOptimizer(
        torch.optim.Adam(twin.model.named_parameters(), lr=0.05), twin.weights, **RULES[rules]
    )
    for s, o in ((setup, optimizer), (twin, other)):
        s.backward()
        o.step()
    before = snapshot(setup), copy.deepcopy(optimizer.state_dict()), optimizer.report
    setup.backward()
    setup.model.get_parameter(name).grad.view(-1)[2] = bad
    with pytest.raises(NonFiniteGradientError, match=f"'{name}'.*unchanged"):
        optimizer.step()
    assert_same(snapshot(setup), before[0])
    assert_same(optimizer.state_dict(), before[1])
    assert optimizer.report == before[2]
    for s, o in ((setup, optimizer), (twin, other)):  # and the run goes on as if nothing was
        s.backward()
        o.step()
    assert_same(dict(setup.model.state_dict()), dict(twin.model.state_dict()))


def test_a_bad_gradient_on_the_first_step_leaves_no_state(make_setup):
    setup = make_setup()
    base = torch.optim.Adam(setup.model.parameters(), lr=0.05)
    optimizer = PVOptimizer(base, setup.weights, latent_decay=0.0)
    setup.backward()
    setup.weights.parameter("2.weight").grad[0, 0] = torch.nan
    with pytest.raises(NonFiniteGradientError, match=r"'2.weight' \(parameter 2 of group 0\)"):
        optimizer.step()
    assert len(base.state) == len(optimizer.state) == 0
    assert issubclass(NonFiniteGradientError, FloatingPointError)


def test_infinities_that_cancel_are_found(make_setup):
    setup = make_setup()
    optimizer = PVOptimizer(torch.optim.SGD(setup.model.parameters(), lr=0.1), setup.weights)
    setup.backward()
    setup.weights.parameter("0.weight").grad[0, :2] = torch.tensor([torch.inf, -torch.inf])
    with pytest.raises(NonFiniteGradientError):
        optimizer.step()


def test_large_finite_gradients_are_no_error(make_setup):
    """Their sum overflows, no entry does."""
    setup = make_setup(UniformGrid(bits=2))
    base = torch.optim.Adam(setup.model.parameters(), lr=1e-3)
    optimizer = PVOptimizer(base, setup.weights, subspace=AllGroups(), latent_decay=0.0)
    setup.backward()
    setup.model[0].bias.grad.fill_(3e38)
    optimizer.step()
    setup.check_decoded()


def test_a_closure_with_a_bad_gradient_changes_nothing(make_setup, assert_same):
    setup = make_setup()
    base = torch.optim.SGD(setup.model.parameters(), lr=0.1)
    optimizer = PVOptimizer(base, setup.weights, latent_decay=0.0)
    before = snapshot(setup)

    def closure() -> torch.Tensor:
        setup.model.zero_grad()
        loss = setup.loss() * torch.nan
        loss.backward()
        return loss

    with pytest.raises(NonFiniteGradientError):
        optimizer.step(closure)
    assert_same(snapshot(setup), before)
