"""Learning rates against closed forms on quadratics, and against the optimizers' own steps."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pvopt import AllGroups, Greedy, Uniform, VectorCodebook, quantize_
from pvopt.smoothness import suggest_code_lr

BASES = {
    "sgd": torch.optim.SGD,
    "adam": partial(torch.optim.Adam, betas=(0.0, 0.95)),
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
}
suggest = partial(suggest_code_lr, iterations=3000, tolerance=1e-13)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def test_sgd_on_everything_gives_one_over_the_constant(make_quadratic, generator):
    problem, model, loss = make_quadratic(0)
    g = problem.gradient(model.x.detach().numpy())
    found = suggest(model, loss, base=torch.optim.SGD, subspace=AllGroups(), generator=generator)
    assert found.fraction == 1.0
    assert found.smoothness == pytest.approx(problem.smoothness, rel=1e-6)
    assert found.by_smoothness == pytest.approx(1 / problem.smoothness, rel=1e-6)
    assert found.along_update == pytest.approx(g @ g / (g @ problem.A @ g), rel=1e-9)
    assert found.lr == found.along_update


def test_adam_gets_the_size_of_the_theorys_step(make_quadratic, generator):
    problem, model, loss = make_quadratic(1)
    g = problem.gradient(model.x.detach().numpy())
    u = np.sign(g)
    found = suggest(model, loss, base=BASES["adam"], subspace=AllGroups(), generator=generator)
    assert found.by_smoothness == pytest.approx(rms(g / problem.smoothness), rel=1e-5)
    assert found.along_update == pytest.approx(g @ u / (u @ problem.A @ u), rel=1e-5)


def test_adafactor_is_relative_to_the_weights_and_takes_the_median_layer(generator):
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(6, 5, bias=False).double() for _ in range(3))
    bends = (1.0, 2.0, 5.0)  # phi = sum of bend / 2 ||w||^2, so g = bend * w
    with torch.no_grad():
        for layer, size in zip(model, (1.0, 10.0, 0.1), strict=True):
            layer.weight.mul_(size)

    def loss(m):
        parts = zip(bends, m, strict=True)
        return sum(b / 2 * layer.weight.square().sum() for b, layer in parts)

    found = suggest(
        model, loss, base=torch.optim.Adafactor, subspace=AllGroups(), generator=generator
    )
    assert found.smoothness == pytest.approx(5.0, rel=1e-9)
    # Each layer's 1/L step has rms(bend * w) / 5; Adafactor's unit is rms(w), up to its factoring.
    assert found.by_smoothness == pytest.approx(2.0 / 5.0, rel=0.1)


def test_greedy_selects_what_the_first_v_step_would(make_quadratic, generator):
    problem, model, loss = make_quadratic(2)
    g = problem.gradient(model.x.detach().numpy())
    i = int(np.abs(g).argmax())
    found = suggest(
        model, loss, base=torch.optim.SGD, subspace=Greedy(1 / len(g)), generator=generator
    )
    assert found.fraction == 1 / len(g)
    for value in (1 / found.smoothness, found.by_smoothness, found.along_update):
        assert value == pytest.approx(1 / problem.A[i, i], rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(BASES)))
def test_no_other_learning_rate_of_the_first_step_does_better(make_quadratic, seed, name):
    problem, model, loss = make_quadratic(seed)
    with torch.no_grad():
        model.x.mul_(100)  # Adafactor caps learning rates at 1, in units of the weights
    found = suggest_code_lr(
        model,
        loss,
        base=BASES[name],
        subspace=AllGroups(),
        generator=torch.Generator().manual_seed(seed),
    )
    start = model.x.detach().clone()
    values = []
    for factor in (0.8, 1.0, 1.25):
        with torch.no_grad():
            model.x.copy_(start)
        optimizer = BASES[name](model.parameters(), lr=factor * found.lr)
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        values.append(float(problem.value(model.x.detach().numpy())))
    assert values[1] == min(values)


def test_groups_of_quantized_weights_move_whole(generator):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    inputs, targets = torch.randn(40, 8).double(), torch.randn(40, 4).double()
    weights = quantize_(model, VectorCodebook(bits=2, group_size=2))

    def loss(m):
        return (m(inputs) - targets).square().mean()

    found = suggest(
        model, loss, weights, base=torch.optim.Adafactor, subspace=Uniform(0.1), generator=generator
    )
    # 32 and 16 groups of two weights: 4 and 2 of them.
    assert found.fraction == pytest.approx(6 / 48)
    default = suggest(model, loss, weights, base=torch.optim.SGD, generator=generator)
    assert default.fraction == pytest.approx(2 / 48)  # Greedy(0.01): one group of each
    assert default.smoothness > 0


def test_no_minimum_along_the_update_falls_back_as_documented(generator):
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    found = suggest(
        model,
        lambda m: -m.weight.square().sum(),
        base=torch.optim.SGD,
        subspace=AllGroups(),
        generator=generator,
    )
    assert found.along_update == math.inf
    assert found.lr == found.by_smoothness == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"subspace": 0.01}, TypeError, "subspace must be a Subspace"),
        ({"iterations": 1}, ValueError, "iterations must be"),
        ({"tolerance": -1}, ValueError, "tolerance must"),
        ({"loss": lambda m: m.weight.sum()}, ValueError, "must bend"),
        ({"loss": lambda m: (m.weight - m.weight.detach()).square().sum()}, ValueError, "gradient"),
    ],
)
def test_bad_arguments_are_refused(generator, change, error, message):
    given = {"loss": lambda m: m.weight.square().sum(), **change}
    loss = given.pop("loss")
    with pytest.raises(error, match=message):
        suggest_code_lr(nn.Linear(2, 2), loss, base=torch.optim.SGD, generator=generator, **given)
