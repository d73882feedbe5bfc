"""Options per parameter group, and phases."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from pvopt import (
    AllGroups,
    Alternate,
    Greedy,
    HalfSteps,
    Phases,
    PVOptimizer,
    SGDValues,
    Simultaneous,
    Stochastic,
    UniformGrid,
    continuous_only,
)

NAMES = ["0.weight", "2.weight"]


def make(setup: Any, first: dict[str, Any], second: dict[str, Any], **options: Any) -> PVOptimizer:
    """Give each quantized weight a group of its own."""
    one, two = setup.weights.parameters()
    groups = [
        {"params": [one], **first},
        {"params": [two], **second},
        {"params": setup.weights.other_parameters()},
    ]
    options = {"subspace": Greedy(0.1), **options}
    return PVOptimizer(torch.optim.Adam(groups, lr=0.2), setup.weights, **options)


def codes(setup: Any) -> dict[str, torch.Tensor]:
    return {name: rep.group_codes().clone() for name, rep in setup.weights.items()}


def values(setup: Any) -> dict[str, Any]:
    return copy.deepcopy({name: rep.values for name, rep in setup.weights.items()})


def test_groups_show_every_option(make_setup):
    setup = make_setup()
    optimizer = make(setup, {"trust_ratio": 0.5}, {"seed": 9}, trust_ratio=0.01, latent_decay=0.25)
    options = {
        "fraction": 0.1,
        "trust_ratio": 0.01,
        "latent_decay": 0.25,
        "values_lr_ratio": 5.0,
        "freeze_codes": False,
        "freeze_values": False,
        "seed": 0,
    }
    first, second, third = optimizer.param_groups
    assert {key: first[key] for key in options} == options | {"trust_ratio": 0.5}
    assert {key: second[key] for key in options} == options | {"seed": 9}
    assert {key: third[key] for key in options} == options


def test_fractions(make_setup):
    setup = make_setup()
    optimizer = make(setup, {"fraction": 0.05}, {"fraction": 1.0}, latent_decay=0.0)
    most = dict.fromkeys(NAMES, 0)
    for step in range(6):
        if step == 4:
            optimizer.param_groups[0]["fraction"] = 0.5
        limits = {"0.weight": 2 if step < 4 else 12, "2.weight": 12}
        setup.backward()
        optimizer.step()
        for name in NAMES:
            assert optimizer.report.changed[name] <= limits[name]
            most[name] = max(most[name], optimizer.report.changed[name])
    assert most["2.weight"] > 2
    assert most["0.weight"] > 2


def test_trust_ratios(make_setup):
    setup = make_setup(UniformGrid(bits=3), dtype=torch.float64)
    optimizer = make(
        setup,
        {"trust_ratio": 0.4},
        {"trust_ratio": None},
        subspace=AllGroups(),
        latent_decay=0.0,
    )
    optimizer.param_groups[1]["freeze_values"] = optimizer.param_groups[0]["freeze_values"] = True
    ratios: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(5):
        before = {name: setup.weights[name].decode() for name in NAMES}
        setup.backward()
        optimizer.step()
        for name in NAMES:
            change = setup.weights[name].decode() - before[name]
            if optimizer.report.changed[name] > 1:  # one is accepted in any case
                ratios[name].append(float(change.norm() / before[name].norm()))
    assert 0.1 < max(ratios["0.weight"]) <= 0.4 * (1 + 1e-9)
    assert max(ratios["2.weight"]) > 0.4


def test_frozen_codes_keep_no_state_in_the_base(make_setup):
    setup = make_setup()
    optimizer = make(setup, {"freeze_codes": True}, {}, subspace=AllGroups(), latent_decay=0.0)
    start, before = codes(setup), values(setup)
    for _ in range(4):
        setup.backward()
        optimizer.step()
        setup.check_decoded()
    one, two = setup.weights.parameters()
    assert torch.equal(codes(setup)["0.weight"], start["0.weight"])
    assert not torch.equal(codes(setup)["2.weight"], start["2.weight"])
    for name in NAMES:
        for key, value in setup.weights[name].values.items():
            assert not torch.equal(value, before[name][key])
    assert one not in optimizer.base.state or not optimizer.base.state[one]
    assert optimizer.base.state[two]
    assert "pv.latent" not in optimizer.state[one]
    assert list(optimizer.report.groups) == ["2.weight"]


def test_frozen_values(make_setup, assert_same):
    setup = make_setup()
    optimizer = make(setup, {"freeze_values": True}, {}, subspace=AllGroups(), latent_decay=0.0)
    start, before = codes(setup), values(setup)
    for _ in range(4):
        setup.backward()
        optimizer.step()
        setup.check_decoded()
    assert_same(setup.weights["0.weight"].values, before["0.weight"])
    assert not torch.equal(codes(setup)["0.weight"], start["0.weight"])
    for key, value in setup.weights["2.weight"].values.items():
        assert not torch.equal(value, before["2.weight"][key])


def test_frozen_codes_and_values_move_nothing(make_setup):
    setup = make_setup()
    both = {"freeze_codes": True, "freeze_values": True}
    optimizer = make(setup, both, {}, subspace=AllGroups())
    weight = setup.weights.parameter("0.weight").detach().clone()
    for _ in range(3):
        setup.backward()
        optimizer.step()
    assert torch.equal(setup.weights.parameter("0.weight"), weight)
    setup.check_decoded()


def test_freezing_and_thawing_on_the_way(make_setup):
    setup = make_setup()
    optimizer = make(setup, {}, {}, subspace=AllGroups(), latent_decay=0.0)
    for frozen in (False, True, False):
        optimizer.param_groups[0]["freeze_codes"] = frozen
        moved = 0
        for _ in range(4):
            before = codes(setup)["0.weight"]
            setup.backward()
            optimizer.step()
            setup.check_decoded()
            moved += int((codes(setup)["0.weight"] != before).sum())
        assert (moved == 0) == frozen


def test_latent_decay(make_setup):
    """rho = 1 keeps no latent, rho = 0 all updates, between: b <- (1 - rho) b + rho w."""
    setup = make_setup(dtype=torch.float64)
    optimizer = make(setup, {"latent_decay": 1.0}, {"latent_decay": 0.3}, subspace=AllGroups())
    one, two = setup.weights.parameters()
    latent = two.detach().clone()
    dense = torch.nn.Parameter(latent.clone())
    twin = torch.optim.Adam([dense], lr=0.2)
    for _ in range(4):
        setup.backward()
        dense.data.copy_(latent)
        dense.grad = two.grad.clone()
        twin.step()
        optimizer.step()
        latent = 0.7 * dense.detach() + 0.3 * two.detach()
        torch.testing.assert_close(optimizer.state[two]["pv.latent"], latent)
        assert "pv.latent" not in optimizer.state[one]


def test_a_latent_that_is_given_up_is_dropped(make_setup):
    setup = make_setup()
    optimizer = make(setup, {}, {}, subspace=AllGroups(), latent_decay=0.0)
    one = setup.weights.parameter("0.weight")
    for decay, kept in ((0.0, True), (1.0, False), (0.5, True)):
        optimizer.param_groups[0]["latent_decay"] = decay
        setup.backward()
        optimizer.step()
        assert ("pv.latent" in optimizer.state[one]) == kept
        setup.check_decoded()


def test_values_lr_ratio(make_setup):
    setup = make_setup(dtype=torch.float64)
    optimizer = make(setup, {"values_lr_ratio": 0.0}, {"values_lr_ratio": 0.25}, values=SGDValues())
    before = values(setup)
    setup.backward()
    rep = setup.weights["2.weight"]
    gradients = rep.pull([setup.weights.parameter("2.weight").grad])
    optimizer.step()
    for key, value in setup.weights["0.weight"].values.items():
        assert torch.equal(value, before["0.weight"][key])
    for key, value in rep.values.items():
        torch.testing.assert_close(value, before["2.weight"][key] - 0.05 * gradients[key])


def test_seeds(make_setup):
    def run(seed: int) -> dict[str, torch.Tensor]:
        setup = make_setup()
        optimizer = make(
            setup, {"seed": seed}, {"seed": 1}, subspace=AllGroups(), rounding=Stochastic()
        )
        setup.backward()
        optimizer.step()
        return codes(setup)

    one, same, other = run(1), run(1), run(2)
    assert torch.equal(one["0.weight"], same["0.weight"])
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert torch.equal(one["2.weight"], other["2.weight"])


def test_lr_zero_in_one_group_moves_nothing_there(make_setup):
    setup = make_setup()
    optimizer = make(setup, {"lr": 0.0}, {}, subspace=AllGroups(), latent_decay=0.0)
    one, two = setup.weights.parameters()
    before = one.detach().clone(), two.detach().clone()
    for _ in range(3):
        setup.backward()
        optimizer.step()
        setup.check_decoded()
    assert torch.equal(one, before[0])
    assert not torch.equal(two, before[1])


def test_tensor_learning_rates(make_setup):
    setup = make_setup()
    base = torch.optim.Adam(setup.model.parameters(), lr=torch.tensor(0.1))
    optimizer = PVOptimizer(base, setup.weights, subspace=AllGroups())
    before = setup.weights.parameter("0.weight").detach().clone()
    setup.backward()
    optimizer.step()
    setup.check_decoded()
    assert not torch.equal(setup.weights.parameter("0.weight"), before)


@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        ({"fraction": 0.0}, ValueError, "fraction"),
        ({"trust_ratio": -1.0}, ValueError, "trust_ratio must be positive or None, got -1.0"),
        ({"latent_decay": 1.5}, ValueError, "latent_decay"),
        ({"values_lr_ratio": -0.1}, ValueError, "values_lr_ratio must not be negative"),
        ({"values_lr_ratio": math.nan}, ValueError, "values_lr_ratio"),
        ({"freeze_codes": 1}, TypeError, "freeze_codes must be a bool, got 1"),
        ({"freeze_values": None}, TypeError, "freeze_values must be a bool"),
        ({"seed": "0"}, TypeError, "seed must be an int, got '0'"),
    ],
)
def test_bad_options_are_refused(make_setup, option, kind, words):
    setup = make_setup()
    with pytest.raises(kind, match=words):
        make(setup, option, {})
    optimizer = make(setup, {}, {})
    before = setup.weights.parameter("0.weight").detach().clone()
    optimizer.param_groups[0].update(option)
    setup.backward()
    with pytest.raises(kind, match=words):
        optimizer.step()
    assert torch.equal(setup.weights.parameter("0.weight"), before)


def test_a_fraction_needs_a_rule_that_has_one(make_setup):
    setup = make_setup()
    with pytest.raises(ValueError, match=r"fraction must be None with AllGroups, got 0.5"):
        make(setup, {"fraction": 0.5}, {}, subspace=AllGroups())


def test_continuous_only_also_freezes_groups_that_are_added(make_setup):
    setup = make_setup()
    one, two = setup.weights.parameters()
    optimizer = continuous_only(torch.optim.Adam([one], lr=0.2), setup.weights)
    optimizer.add_param_group({"params": [two]})
    start = codes(setup)
    for _ in range(3):
        setup.backward()
        optimizer.step()
    for name in NAMES:
        assert torch.equal(codes(setup)[name], start[name])
    assert len(optimizer.base.state) == 0


def test_alternate_moves_values_and_codes_in_turn(make_setup, assert_same):
    setup = make_setup()
    optimizer = make(
        setup, {}, {}, subspace=AllGroups(), phases=Alternate(p=2, v=1), latent_decay=0.0
    )
    for step in range(9):
        before = codes(setup), values(setup)
        latents = {
            n: optimizer.state[p].get("pv.latent") for n, p, _ in optimizer.named_representations()
        }
        latents = copy.deepcopy(latents)
        setup.backward()
        optimizer.step()
        setup.check_decoded()
        in_v = step % 3 == 2
        same_codes = all(torch.equal(codes(setup)[n], before[0][n]) for n in NAMES)
        if in_v:
            assert_same(values(setup), before[1])
            assert not same_codes
        else:
            assert same_codes
            assert not torch.equal(
                values(setup)["0.weight"]["codebooks"], before[1]["0.weight"]["codebooks"]
            )
        for name, p, _ in optimizer.named_representations():  # latents collect in every step
            now = optimizer.state[p]["pv.latent"]
            assert latents[name] is None or not torch.equal(now, latents[name])


def test_alternate_without_a_latent_leaves_the_base_alone_in_p_steps(make_setup):
    setup = make_setup()
    optimizer = make(setup, {}, {}, latent_decay=1.0, phases=Alternate(p=1, v=1))
    one = setup.weights.parameter("0.weight")
    for step in range(4):
        setup.backward()
        optimizer.step()
        setup.check_decoded()
        taken = int(optimizer.base.state[one]["step"]) if one in optimizer.base.state else 0
        assert taken == (step + 1) // 2


def test_phases():
    assert Simultaneous().at(5) == HalfSteps(values=True, codes=True)
    found = [Alternate(p=3, v=2).at(step) for step in range(6)]
    assert [phase.values for phase in found] == [True, True, True, False, False, True]
    assert all(phase.codes is not phase.values for phase in found)
    assert isinstance(Alternate(p=1, v=1), Phases)
    for p, v in ((0, 1), (1, 0), (1.0, 1), (True, 1)):
        with pytest.raises(ValueError, match="must be a positive int"):
            Alternate(p=p, v=v)
