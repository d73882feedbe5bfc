"""Any torch optimizer as the base, and parameters of low precision with latents of high."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pvopt import (
    AllGroups,
    Greedy,
    PVOptimizer,
    QuantizedWeights,
    SGDValues,
    SharedValues,
    UniformGrid,
)

BASES: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.02, foreach=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.02),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.02, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02),
}
each_base = pytest.mark.parametrize("name", list(BASES))


@each_base
def test_the_latent_follows_the_base_optimizer_exactly(make_setup, name):
    """STE: the latent equals a dense weight that the base steps on the same gradients."""
    setup = make_setup()
    optimizer = PVOptimizer(
        BASES[name](setup.model.parameters()),
        setup.weights,
        subspace=AllGroups(),
        latent_decay=0.0,
    )
    dense = [nn.Parameter(p.detach().clone()) for p in setup.model.parameters()]
    twin = BASES[name](dense)
    for _ in range(5):
        setup.backward()
        for p, d in zip(setup.model.parameters(), dense, strict=True):
            d.grad = p.grad.clone()
        optimizer.step()
        twin.step()
        setup.check_decoded()
    quantized = {id(p) for p in setup.weights.parameters()}
    for p, d in zip(setup.model.parameters(), dense, strict=True):
        found = optimizer.state[p]["pv.latent"] if id(p) in quantized else p
        assert torch.equal(found, d)


@each_base
@pytest.mark.parametrize("latent_decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_base_lowers_the_loss(make_setup, name, latent_decay, dtype):
    setup = make_setup(UniformGrid(bits=3), dtype=dtype)
    optimizer = PVOptimizer(
        BASES[name](setup.model.parameters()),
        setup.weights,
        subspace=Greedy(0.2),
        latent_decay=latent_decay,
    )
    losses = []
    for _ in range(25):
        losses.append(setup.backward())
        optimizer.step()
        setup.check_decoded()
    assert min(losses[-5:]) < losses[0]


def test_bfloat16_weights_have_latents_values_and_moments_in_single_precision(make_setup):
    setup = make_setup(dtype=torch.bfloat16)
    base = torch.optim.Adam(setup.model.parameters(), lr=0.01)
    optimizer = PVOptimizer(base, setup.weights, latent_decay=0.0)
    for _ in range(2):
        setup.backward()
        optimizer.step()
    for p in setup.weights.parameters():
        assert p.dtype == p.grad.dtype == torch.bfloat16
        assert optimizer.state[p]["pv.latent"].dtype == torch.float32
        assert base.state[p]["exp_avg"].dtype == torch.float32
        for key, value in optimizer.state[p].items():
            if key.startswith("pv.values."):
                assert value.dtype == torch.float32, key
    setup.check_decoded()


@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_updates_too_small_for_bfloat16_survive(latent_decay):
    """200 steps of 1e-3 from 1.0 cross to 1.2; in bfloat16 each of them would be rounded away."""
    weight = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.bfloat16))
    rep = SharedValues(num_values=2).fit(torch.tensor([1.0, 1.2]))
    rep.codes["entries"].zero_()
    base = torch.optim.SGD([{"params": [weight], "freeze_values": True}], lr=1e-3)
    optimizer = PVOptimizer(base, {weight: rep}, subspace=AllGroups(), latent_decay=latent_decay)
    for _ in range(200):
        weight.grad = torch.tensor([-1.0, 0.0], dtype=torch.bfloat16)
        optimizer.step()
    moved = latent_decay == 0.0  # without a latent no single step is long enough
    assert rep.group_codes()[:, 0].tolist() == [int(moved), 0]
    if moved:
        assert float(optimizer.state[weight]["pv.latent"][0]) == pytest.approx(1.2, abs=1e-4)


def test_a_step_without_a_latent_is_taken_in_the_precision_of_the_values():
    """1 + 0.0015 is nearest to 1.002; bfloat16 has no number between 1 and 1.0078."""
    weight = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.bfloat16))
    rep = SharedValues(num_values=2).fit(torch.tensor([1.0, 1.002]))
    rep.codes["entries"].zero_()
    base = torch.optim.SGD([{"params": [weight], "freeze_values": True}], lr=0.0015, momentum=0.9)
    optimizer = PVOptimizer(base, {weight: rep}, subspace=AllGroups())
    weight.grad = torch.tensor([-1.0, 0.0], dtype=torch.bfloat16)
    optimizer.step()
    assert rep.group_codes()[:, 0].tolist() == [1, 0]
    assert base.state[weight]["momentum_buffer"].dtype == torch.float32


def test_values_move_in_single_precision_under_bfloat16_weights():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    rep = SharedValues(num_values=1).fit(weight)
    base = torch.optim.SGD([weight], lr=1e-4)
    optimizer = PVOptimizer(base, {weight: rep}, values=SGDValues())
    for _ in range(100):
        weight.grad = torch.full((4,), 0.25, dtype=torch.bfloat16)
        optimizer.step()
    assert float(rep.values["values"]) == pytest.approx(0.99, abs=1e-5)
    assert torch.equal(weight, rep.decode().bfloat16())
    assert weight[0].item() < 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_in_half_precision_are_refused_as_steps_would_be_rounded_away(dtype):
    layer = nn.Linear(4, 2, bias=False).to(dtype)
    reps = {"weight": UniformGrid(bits=2).fit(layer.weight).to(dtype=dtype)}
    weights = QuantizedWeights(layer, reps)
    with pytest.raises(ValueError, match=r"values of 'weight' must be torch\.float32.*, got torch"):
        PVOptimizer(torch.optim.SGD(layer.parameters(), lr=0.1), weights)


def test_mixed_dtypes_in_one_model(make_setup):
    setup = make_setup()
    setup.model[2].to(torch.bfloat16)
    base = torch.optim.AdamW(setup.model.parameters(), lr=0.02, fused=True)
    optimizer = PVOptimizer(base, setup.weights, latent_decay=0.0, subspace=Greedy(0.5))
    for _ in range(5):
        setup.model.zero_grad()
        hidden = setup.model[1](setup.model[0](setup.inputs)).bfloat16()
        (setup.model[2](hidden).float() - setup.targets).square().mean().backward()
        optimizer.step()
        setup.check_decoded()


def test_double_precision_throughout(make_setup):
    setup = make_setup(dtype=torch.float64)
    base = torch.optim.Adam(setup.model.parameters(), lr=0.01)
    optimizer = PVOptimizer(base, setup.weights, latent_decay=0.0)
    setup.backward()
    optimizer.step()

    def floating(state: dict[str, Any]) -> list[Tensor]:
        tensors = {k: v for k, v in state.items() if isinstance(v, Tensor) and k != "step"}
        return [v for v in tensors.values() if v.is_floating_point()]

    for p in setup.weights.parameters():
        assert all(v.dtype == torch.float64 for v in floating(optimizer.state[p]))
