"""Out of the box codes move, at the learning rate that a model has; a stall is reported."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from pvopt import (
    AdamValues,
    Greedy,
    PVOptimizer,
    QuantizedNonzeros,
    SharedValues,
    SparseNM,
    UniformGrid,
    VectorCodebook,
    naive_pv,
    quantize_,
    stochastic_rounding,
    subspace_pv,
    subspace_pv_ste,
)

BASES: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "Adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=3e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
}


def problem(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    inputs = torch.randn(64, 16)
    return model, inputs, torch.randn(64, 4)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[torch.Tensor, ...], steps: int
) -> float:
    inputs, targets = data
    loss = torch.tensor(0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize(
    "recipe",
    [PVOptimizer, subspace_pv_ste, subspace_pv, stochastic_rounding],
    ids=lambda r: r.__name__,
)
def test_every_recipe_moves_codes_and_lowers_the_loss_with_every_base(recipe, base):
    model, *data = problem()
    weights = quantize_(model, UniformGrid(bits=2))
    optimizer = recipe(BASES[base](model.parameters()), weights)
    before = {name: rep.group_codes().clone() for name, rep in weights.items()}
    first = train(model, optimizer, data, 1)
    last = train(model, optimizer, data, 60)
    assert last < first
    assert any(bool((rep.group_codes() != before[name]).any()) for name, rep in weights.items())


@pytest.mark.parametrize(
    "parametrization", [SharedValues(num_values=4), VectorCodebook(bits=3, group_size=2)], ids=str
)
def test_measured_lengths_resume_bit_for_bit(parametrization):
    model, *data = problem()
    weights = quantize_(model, parametrization)

    def make(model: nn.Module, weights: Any) -> PVOptimizer:
        base = torch.optim.Adam(model.parameters(), lr=3e-3)
        return subspace_pv(base, weights, subspace=Greedy(0.05), trust_ratio=0.1)

    optimizer = make(model, weights)
    train(model, optimizer, data, 25)
    twin, twin_weights = copy.deepcopy((model, weights))
    resumed = make(twin, twin_weights)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    key = "pv.code_step.length"
    lengths = [state[key] for state in optimizer.state.values() if key in state]
    assert max(float(length) for length in lengths) > 2
    train(model, optimizer, data, 15)
    train(twin, resumed, data, 15)
    for (key, ours), theirs in zip(
        model.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key


def test_codes_settle_with_the_learning_rate():
    """Half of the selected groups move at the largest learning rate, none without one."""
    model, *data = problem()
    weights = quantize_(model, UniformGrid(bits=2))
    base = torch.optim.Adam(model.parameters(), lr=3e-3)
    # Values that move slowly, so that the moves are those that the measured length asks for.
    values = AdamValues(lr_ratio=1.0)
    optimizer = subspace_pv(base, weights, subspace=Greedy(0.1), trust_ratio=0.3, values=values)
    schedule = torch.optim.lr_scheduler.LinearLR(base, 1.0, 0.0, total_iters=100)
    changed = []
    for _ in range(102):
        train(model, optimizer, data, 1)
        changed.append(optimizer.report.changed_groups)
        schedule.step()
    # Of equally many steps; seeds and orders of summation give ratios from 1.8 to 3.1.
    assert sum(changed[20:60]) > 1.5 * sum(changed[-42:-2])
    assert changed[-2:] == [0, 0]


def test_first_greedy_steps_of_adam_take_the_groups_of_largest_gradient():
    """All of Adam's first updates are of one length: floating-point noise must not choose."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 32))
    rep = UniformGrid(bits=4).fit(weight.detach())
    weight.data.copy_(rep.decode())
    base = torch.optim.Adam([{"params": [weight], "freeze_values": True}], lr=0.3)
    optimizer = PVOptimizer(base, {weight: rep}, subspace=Greedy(0.05))
    weight.grad = torch.randn(8, 32)
    before = rep.group_codes().clone()
    optimizer.step()
    moved = (rep.group_codes() != before)[:, 0].nonzero().flatten()
    largest = weight.grad.flatten().abs().topk(13).indices
    assert len(moved) > 0
    assert set(moved.tolist()) <= set(largest.tolist())


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        (naive_pv, {}, "one update alone is too short"),
        (subspace_pv, {"code_lr_ratio": 1.0}, "one update alone is too short"),
        (PVOptimizer, {"latent_decay": 0.9}, "latent_decay too high"),
    ],
)
def test_one_message_says_why_no_code_moves(recipe, options, words, caplog):
    model, *data = problem()
    weights = quantize_(model, UniformGrid(bits=2))
    base = torch.optim.SGD(model.parameters(), lr=1e-6)
    optimizer = recipe(base, weights, **options)
    with caplog.at_level(logging.WARNING, logger="pvopt"):
        train(model, optimizer, data, 99)
        assert caplog.records == []
        train(model, optimizer, data, 15)
    (record,) = caplog.records
    assert words in record.getMessage()


def test_nothing_is_said_where_codes_move(caplog):
    model, *data = problem()
    optimizer = PVOptimizer(
        torch.optim.Adam(model.parameters(), lr=1e-2), quantize_(model, UniformGrid(bits=2))
    )
    train(model, optimizer, data, 101)
    assert caplog.records == []


@pytest.mark.parametrize("lr", [0.5, 1.0, 30.0])
def test_relative_rates_of_values_have_a_limit(lr):
    """A scale does not change by more than two hundredths of the scales' size in a step."""
    weight = nn.Parameter(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
    rep = UniformGrid(bits=2).fit(weight.detach())
    weight.data.copy_(rep.decode())
    base = torch.optim.SGD([{"params": [weight], "freeze_codes": True}], lr=lr)
    optimizer = PVOptimizer(base, {weight: rep})
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 1 / (1 + step))
    for step in range(4):
        before = rep.values["scales"].clone()
        weight.grad = torch.ones(4, 16) * (1 + weight.detach())
        optimizer.step()
        schedule.step()
        change = (rep.values["scales"] - before).abs().max() / before.square().mean().sqrt()
        # The limit, and the shape of the schedule below it. The gradient changes with the scales,
        # by about 2 % a step, so Adam's quotient of moments stays that close to 1.
        assert float(change) == pytest.approx(0.02 / (1 + step), rel=0.03)


def test_values_of_zero_leave_zero():
    rule = AdamValues()
    value = torch.zeros(3)
    moments = {name: [torch.zeros(3)] for name in rule.moments}
    rule.move_([value], [torch.tensor([1.0, -1.0, 0.0])], moments, [0.1], [1], [None])
    torch.testing.assert_close(value, torch.tensor([-1e-5, 1e-5, 0.0]))


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("sparse", [False, True])
def test_zero_points_move_by_levels_and_not_by_their_own_size(bits, sparse):
    """At 8 bits a zero point is near 127: two hundredths of that would be more than two levels."""
    weight = nn.Parameter(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
    grid = UniformGrid(bits=bits)
    support = SparseNM(nonzeros=2, group_size=4)
    rep = (QuantizedNonzeros(support=support, inner=grid) if sparse else grid).fit(weight.detach())
    weight.data.copy_(rep.decode())
    base = torch.optim.SGD([{"params": [weight], "freeze_codes": True}], lr=1.0)
    optimizer = PVOptimizer(base, {weight: rep})
    before = {name: value.clone() for name, value in rep.values.items()}
    weight.grad = torch.ones(4, 16) * (1 + weight.detach())
    optimizer.step()
    moved = {name: (rep.values[name] - before[name]).abs() for name in before}
    # Adam's first steps are of the rate's length, here at its limit: 0.02 of a unit.
    # float32 knows a number near 127 to 8e-6.
    torch.testing.assert_close(moved["zeros"], torch.full((4, 1), 0.005), rtol=1e-2, atol=0)
    size = before["scales"].square().mean().sqrt()
    torch.testing.assert_close(moved["scales"], size.expand(4, 1) * 0.02)


@pytest.mark.parametrize("name", ["eps", "max_rate", "floor"])
def test_bad_settings_of_values_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got -1.0"):
        AdamValues(**{name: -1.0})


def test_a_bad_length_of_steps_is_refused():
    model, *_ = problem()
    weights = quantize_(model, UniformGrid(bits=2))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"code_lr_ratio must be positive or None, got 0\.0"):
        subspace_pv(base, weights, code_lr_ratio=0.0)
