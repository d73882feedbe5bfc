"""What torch's own tools expect of an optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from pvopt import (
    AdditiveCodebooks,
    AllGroups,
    Greedy,
    PVOptimizer,
    QuantizedWeights,
    SGDValues,
    UniformGrid,
    quantize_,
    subspace_pv_ste,
)

NAMES = ["0.weight", "2.weight"]


def adam(setup: Any, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.Adam(setup.model.parameters(), lr=lr)


def test_it_is_an_optimizer_that_shares_the_groups_of_its_base(make_setup):
    setup = make_setup()
    base = adam(setup)
    optimizer = PVOptimizer(base, setup.weights)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.defaults == base.defaults
    optimizer.param_groups[0]["lr"] = 0.25
    assert base.param_groups[0]["lr"] == 0.25
    assert "lr: 0.25" in repr(optimizer)


def test_steps_lower_the_loss_move_codes_and_keep_the_weights_decoded(make_setup):
    setup = make_setup()
    start = {name: rep.clone() for name, rep in setup.weights.items()}
    optimizer = subspace_pv_ste(adam(setup), setup.weights, subspace=Greedy(0.2), trust_ratio=0.2)
    losses = []
    for _ in range(60):
        losses.append(setup.backward())
        optimizer.step()
        setup.check_decoded()
    assert losses[-1] < 0.6 * losses[0]
    for name, rep in setup.weights.items():
        assert not torch.equal(rep.group_codes(), start[name].group_codes())
        for value, rep_value in start[name].values.items():
            assert not torch.equal(rep.values[value], rep_value)


def test_zero_grad_clears_gradients(make_setup):
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup), setup.weights)
    setup.backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in setup.model.parameters())
    setup.backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in setup.model.parameters())


def test_the_gradient_stays_in_place_after_a_step(make_setup):
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup), setup.weights)
    setup.backward()
    before = [(p, p.grad, p.grad.clone()) for p in setup.model.parameters()]
    optimizer.step()
    for p, grad, copied in before:
        assert p.grad is grad
        assert torch.equal(grad, copied)


def test_parameters_keep_their_identity_and_storage(make_setup):
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup), setup.weights, latent_decay=0.0)
    before = [(p, p.data_ptr()) for p in setup.model.parameters()]
    for _ in range(3):
        setup.backward()
        optimizer.step()
    for (p, pointer), now in zip(before, setup.model.parameters(), strict=True):
        assert p is now
        assert p.data_ptr() == pointer
        assert p.requires_grad
        assert p.is_leaf


def test_without_any_quantized_weight_it_is_its_base(make_setup, assert_same):
    left, right = make_setup(), make_setup()
    plain = adam(left)
    empty = QuantizedWeights(right.model, {})
    wrapped = PVOptimizer(adam(right), empty)
    mapped = PVOptimizer(adam(make_setup()), {})
    assert mapped.state_dict()["state"] == {}
    for _ in range(3):
        for setup, optimizer in ((left, plain), (right, wrapped)):
            setup.backward()
            optimizer.step()
    assert_same(dict(left.model.state_dict()), dict(right.model.state_dict()))
    assert_same(plain.state_dict()["state"], wrapped.state_dict()["state"])
    assert wrapped.report.changed_fraction == 0.0


@pytest.mark.parametrize("on_base", [False, True])
@pytest.mark.parametrize("kind", ["lambda", "one-cycle"])
def test_schedulers_drive_weights_and_values(make_setup, on_base, kind):
    setup = make_setup()
    base = adam(setup)
    optimizer = PVOptimizer(base, setup.weights, values=SGDValues(lr_ratio=0.5))
    scheduled = base if on_base else optimizer
    if kind == "lambda":
        scheduler: Any = LambdaLR(scheduled, lambda step: 1.0 / (1 + step))
        expected = [0.05 / (1 + step) for step in range(6)]
    else:
        scheduler = OneCycleLR(scheduled, max_lr=0.1, total_steps=8)
        reference = OneCycleLR(adam(make_setup()), max_lr=0.1, total_steps=8)
        expected = []
        for _ in range(6):
            expected.append(reference.get_last_lr()[0])
            reference.optimizer.step()
            reference.step()
    used, moves = [], []
    for _ in range(6):
        rep = setup.weights["0.weight"]
        before = rep.values["codebooks"].clone()
        setup.backward()
        grad = setup.weights.parameter("0.weight").grad
        gradients = rep.pull([grad])
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        moves.append((before - rep.values["codebooks"]) / gradients["codebooks"])
        setup.check_decoded()
    assert used == pytest.approx(expected)
    for lr, ratio in zip(used, moves, strict=True):  # v <- v - lr * ratio * gradient
        ratio = ratio[ratio.isfinite()]
        assert float(ratio.median()) == pytest.approx(0.5 * lr, rel=1e-3)


def test_one_cycle_keeps_ratios_between_groups(make_setup):
    setup = make_setup()
    groups = [
        {"params": setup.weights.parameters(), "values_lr_ratio": 0.1},
        {"params": setup.weights.other_parameters()},
    ]
    optimizer = PVOptimizer(torch.optim.Adam(groups, lr=0.1), setup.weights)
    OneCycleLR(optimizer, max_lr=[0.2, 0.1], total_steps=10)
    lrs = [group["lr"] for group in optimizer.param_groups]
    assert lrs[0] == pytest.approx(2 * lrs[1])
    assert [group["values_lr_ratio"] for group in optimizer.param_groups] == [0.1, 5.0]


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_changes_nothing_and_skips_overflowing_steps(make_setup, assert_same, fused):
    plain, scaled = make_setup(), make_setup()
    optimizers = [
        PVOptimizer(
            torch.optim.AdamW(s.model.parameters(), lr=0.05, fused=fused),
            s.weights,
            subspace=AllGroups(),
            latent_decay=0.0,
        )
        for s in (plain, scaled)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        plain.backward()
        scaled.model.zero_grad()
        scaler.scale(scaled.loss()).backward()
        if step == 2:  # an overflow: the whole step is skipped
            scaled.weights.parameter("0.weight").grad[0, 0] = torch.inf
            before = copy.deepcopy((scaled.model.state_dict(), optimizers[1].state_dict()))
        else:
            optimizers[0].step()
        scaler.step(optimizers[1])
        scaler.update()
        if step == 2:
            after = (scaled.model.state_dict(), optimizers[1].state_dict())
            assert_same(list(before), list(after))
            assert scaler.get_scale() == 512.0
    assert_same(dict(plain.model.state_dict()), dict(scaled.model.state_dict()))
    assert_same(optimizers[0].state_dict(), optimizers[1].state_dict())


def test_a_closure_is_called_once_at_the_decoded_weights_with_gradients_enabled(
    make_setup, assert_same
):
    left, right = make_setup(), make_setup()
    one, two = (
        PVOptimizer(adam(s), s.weights, latent_decay=0.0, subspace=AllGroups())
        for s in (left, right)
    )
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        left.check_decoded()
        left.model.zero_grad()
        loss = left.loss()
        loss.backward()
        return loss

    for step in range(4):
        found = one.step(closure)
        expected = right.backward()
        two.step()
        assert found.item() == expected
        assert calls == [True] * (step + 1)
    assert_same(dict(left.model.state_dict()), dict(right.model.state_dict()))
    assert two.step() is None


def test_gradient_accumulation_equals_the_big_batch(make_setup, assert_same):
    whole, parts = make_setup(dtype=torch.float64), make_setup(dtype=torch.float64)
    one, two = (
        PVOptimizer(adam(s), s.weights, subspace=Greedy(0.3), latent_decay=0.5)
        for s in (whole, parts)
    )
    for _ in range(5):
        whole.backward()
        parts.model.zero_grad()
        for first in range(0, 16, 4):
            (parts.loss(first, first + 4) / 4).backward()
        one.step()
        two.step()
        for name in NAMES:
            assert_same(whole.weights[name].codes, parts.weights[name].codes)
            torch.testing.assert_close(whole.weights[name].decode(), parts.weights[name].decode())


@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_step_hooks_see_decoded_weights_once(make_setup, latent_decay):
    setup = make_setup(dtype=torch.bfloat16)
    base = adam(setup)
    seen: list[tuple[str, Any, list[torch.Tensor]]] = []

    def hook(name: str) -> Any:
        def record(optimizer: Any, args: Any, kwargs: Any) -> None:
            setup.check_decoded()
            assert all(p.dtype == torch.bfloat16 for p in setup.model.parameters())
            seen.append((name, optimizer, [p.clone() for p in setup.weights.parameters()]))

        return record

    base.register_step_pre_hook(hook("base pre"))
    base.register_step_post_hook(hook("base post"))
    optimizer = PVOptimizer(base, setup.weights, latent_decay=latent_decay, subspace=AllGroups())
    optimizer.register_step_pre_hook(hook("pre"))
    optimizer.register_step_post_hook(hook("post"))
    setup.backward()
    optimizer.step()
    assert [name for name, _, _ in seen] == ["base pre", "pre", "base post", "post"]
    assert all(found is optimizer for _, found, _ in seen)
    for now, (before, after) in zip(
        setup.weights.parameters(), zip(seen[0][2], seen[-1][2], strict=True), strict=True
    ):
        assert not torch.equal(before, after)
        assert torch.equal(after, now)


def test_a_group_that_is_added_after_steps_joins_in(make_setup):
    setup = make_setup()
    first, second = setup.weights.parameters()
    base = torch.optim.Adam([first], lr=0.05)
    optimizer = PVOptimizer(base, setup.weights, subspace=Greedy(0.5), latent_decay=1.0, seed=3)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    frozen = second.detach().clone()
    for _ in range(3):
        setup.backward()
        optimizer.step()
        scheduler.step()
    assert torch.equal(second, frozen)
    assert list(optimizer.report.changed) == ["0.weight"]
    optimizer.add_param_group({"params": [second], "lr": 0.1, "fraction": 1.0, "latent_decay": 0.0})
    added = optimizer.param_groups[1]
    assert added is base.param_groups[1]
    assert added["fraction"] == 1.0
    assert added["seed"] == 3
    assert added["betas"] == (0.9, 0.999)
    for _ in range(5):
        setup.backward()
        optimizer.step()
        setup.check_decoded()
    assert not torch.equal(second, frozen)
    assert "pv.latent" in optimizer.state[second]
    assert "pv.latent" not in optimizer.state[first]
    assert int(optimizer.state[second]["pv.step"]) == 5
    assert int(optimizer.state[first]["pv.step"]) == 8


def test_a_group_added_to_the_base_itself_joins_in(make_setup):
    setup = make_setup()
    first, second = setup.weights.parameters()
    base = torch.optim.SGD([first], lr=0.5)
    optimizer = PVOptimizer(base, setup.weights, subspace=AllGroups())
    base.add_param_group({"params": [second]})
    before = second.detach().clone()
    setup.backward()
    optimizer.step()
    setup.check_decoded()
    assert not torch.equal(second, before)


def test_bad_options_of_an_added_group_are_refused_before_it_is_added(make_setup):
    setup = make_setup()
    first, second = setup.weights.parameters()
    base = torch.optim.SGD([first], lr=0.1)
    optimizer = PVOptimizer(base, setup.weights, subspace=Greedy(0.1))
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\] or None, got 2"):
        optimizer.add_param_group({"params": [second], "fraction": 2.0})
    assert len(optimizer.param_groups) == 1


def test_a_parameter_whose_first_gradient_comes_late(make_setup):
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup), setup.weights, latent_decay=0.0, subspace=AllGroups())
    late = setup.weights.parameter("2.weight")
    before = late.detach().clone()
    for step in range(6):
        setup.backward()
        if step < 3:
            late.grad = None
        optimizer.step()
        setup.check_decoded()
        assert torch.equal(late, before) == (step < 3)
        assert ("2.weight" in optimizer.report.groups) == (step >= 3)
    assert int(optimizer.state[late]["pv.step"]) == 3


def test_parameters_without_gradient_are_left_alone(make_setup, assert_same):
    setup = make_setup()
    still = setup.weights.parameter("0.weight").requires_grad_(False)
    optimizer = PVOptimizer(adam(setup), setup.weights, subspace=AllGroups())
    before = copy.deepcopy(setup.weights["0.weight"].values)
    weight = still.detach().clone()
    for _ in range(3):
        setup.backward()
        optimizer.step()
    assert torch.equal(still, weight)
    assert_same(setup.weights["0.weight"].values, before)
    assert list(optimizer.report.groups) == ["2.weight"]
    optimizer.zero_grad()
    optimizer.step()  # no gradient at all
    assert optimizer.report.changed == {}


def test_the_report_counts_what_changed(make_setup):
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup, 0.3), setup.weights, subspace=AllGroups())
    assert optimizer.report.changed_groups == 0
    before = {name: rep.group_codes().clone() for name, rep in setup.weights.items()}
    setup.backward()
    optimizer.step()
    report = optimizer.report
    for name, rep in setup.weights.items():
        assert report.changed[name] == int((rep.group_codes() != before[name]).any(1).sum())
        assert report.groups[name] == rep.layout.num_groups
    assert report.changed_groups == sum(report.changed.values()) > 0
    assert report.changed_fraction == report.changed_groups / (24 + 12)


def test_representations_may_be_given_by_parameter(make_setup, assert_same):
    left, right = make_setup(), make_setup()
    one = PVOptimizer(adam(left), left.weights, subspace=AllGroups(), latent_decay=0.0)
    by_parameter = {right.weights.parameter(name): rep for name, rep in right.weights.items()}
    two = PVOptimizer(adam(right), by_parameter, subspace=AllGroups(), latent_decay=0.0)
    for _ in range(4):
        for setup, optimizer in ((left, one), (right, two)):
            setup.backward()
            optimizer.step()
    right.check_decoded()
    assert_same(dict(left.model.state_dict()), dict(right.model.state_dict()))


def test_weights_are_found_by_name_after_their_parameter_was_replaced(make_setup):
    """As Accelerate and FSDP2 do: new Parameter objects in the model and in the groups."""
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup), setup.weights, subspace=AllGroups(), latent_decay=0.0)
    linear = setup.model[0]
    old = linear.weight
    linear.weight = nn.Parameter(old.detach().clone())
    for group in optimizer.param_groups:
        group["params"] = [linear.weight if p is old else p for p in group["params"]]
    assert setup.weights.parameter("0.weight") is linear.weight
    assert linear.weight in {p for _, p, _ in optimizer.named_representations()}
    before = linear.weight.detach().clone()
    for _ in range(3):
        setup.backward()
        optimizer.step()
        setup.check_decoded()
    assert not torch.equal(linear.weight, before)
    assert old.grad is None


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"base": "adam"}, TypeError, "base must be a Optimizer, got str"),
        ({"representations": [1]}, TypeError, "representations must be a Mapping, got list"),
        ({"rounding": "nearest"}, TypeError, "rounding must be a Rounding, got str"),
        ({"subspace": 0.01}, TypeError, "subspace must be a Subspace, got float"),
        ({"values": 0.1}, TypeError, "values must be a ValueOptimizer, got float"),
        ({"phases": 2}, TypeError, "phases must be a Phases, got int"),
        ({"search": 2}, TypeError, "search must be a SearchOptions, got int"),
        ({"trust_ratio": 0.0}, ValueError, "trust_ratio must be positive or None, got 0.0"),
        ({"latent_decay": -0.1}, ValueError, r"latent_decay must be in \[0, 1\], got -0.1"),
        ({"seed": 1.5}, TypeError, "seed must be an int, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(make_setup, arguments, kind, words):
    setup = make_setup()
    usual = {"base": adam(setup), "representations": setup.weights}
    with pytest.raises(kind, match=words):
        PVOptimizer(**(usual | arguments))


def test_optimizers_that_call_closures_repeatedly_and_wrapped_ones_are_refused(make_setup):
    setup = make_setup()
    lbfgs = torch.optim.LBFGS(setup.model.parameters())
    for base in (lbfgs, PVOptimizer(adam(setup), setup.weights)):
        with pytest.raises(TypeError, match=f"base.*{type(base).__name__}"):
            PVOptimizer(base, setup.weights)


def test_representations_of_foreign_parameters_are_refused(make_setup):
    setup = make_setup()
    rep = setup.weights["0.weight"]
    with pytest.raises(ValueError, match="in none of its groups"):
        PVOptimizer(adam(setup), {nn.Parameter(torch.ones(6, 8)): rep})
    with pytest.raises(ValueError, match=r"\[6, 8\].*\[4, 6\]"):
        PVOptimizer(adam(setup), {setup.weights.parameter("2.weight"): rep})


def test_a_convolution_and_a_vector_are_tuned_like_a_matrix():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    spec = {
        "0.weight": AdditiveCodebooks(num_codebooks=2, bits=2, in_group=3, out_group=2),
        "2": UniformGrid(bits=2, group_size=4),
    }
    weights = quantize_(model, spec)
    optimizer = PVOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.05),
        weights,
        subspace=Greedy(0.2),
        latent_decay=0.0,
    )
    inputs = torch.randn(8, 2, 4, 4, generator=generator)
    targets = torch.randn(8, 2, generator=generator)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        for name, rep in weights.items():
            assert torch.equal(weights.parameter(name), rep.decode())
    assert losses[-1] < losses[0]
