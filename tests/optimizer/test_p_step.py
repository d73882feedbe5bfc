"""Values move by the same steps, whatever moves with them."""

from __future__ import annotations

import copy

import pytest
import torch

from pvopt import AdamValues, Representation, SGDValues, SharedValues, UniformGrid
from pvopt.engine import p_step as pstep
from pvopt.engine.p_step import ValueStep, p_step, remember
from pvopt.engine.state import WeightState


def weights(rule, seed: int, counts: list[int]) -> list[ValueStep]:
    """Return steps of four weights that took ``counts`` steps before, at two learning rates."""
    source = torch.Generator().manual_seed(seed)
    steps = []
    for i, count in enumerate(counts):
        parametrization = (SharedValues(num_values=4), UniformGrid(bits=2))[i % 2]
        rep = parametrization.fit(torch.randn(3, 8, generator=source), generator=source)
        state = WeightState(rep, rule)
        for _ in range(count):
            state.count_values_step()
        for name, value in rep.values.items():
            for kind in rule.moments:
                state.moment(kind, name).copy_(torch.rand(value.shape, generator=source))
        gradient = torch.randn(3, 8, generator=source)
        steps.append(ValueStep(rep, [gradient], [state], [0.1 if i < 3 else 0.2]))
    return steps


@pytest.mark.parametrize("rule", [SGDValues(), SGDValues(momentum=0.5), AdamValues()])
@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [0, 0, 3, 3]])
@pytest.mark.parametrize("at_once", [1, 9, 1 << 22])
def test_many_weights_move_as_each_alone(monkeypatch, assert_same, rule, counts, at_once):
    together, alone = weights(rule, 0, counts), weights(rule, 0, counts)
    for step in alone:
        p_step([step], rule)
        remember([step], rule)
    monkeypatch.setattr(pstep, "_AT_ONCE", at_once)
    before = copy.deepcopy([step.states[0].moments() for step in together])
    p_step(iter(together), rule)
    assert_same([step.states[0].moments() for step in together], before)  # can be undone
    remember(iter(together), rule)
    for mine, theirs, count in zip(together, alone, counts, strict=True):
        assert mine.states[0].values_step == count + 1
        for name, value in mine.rep.values.items():
            assert torch.equal(value, theirs.rep.values[name])
        assert_same(dict(mine.states[0]), dict(theirs.states[0]))


@pytest.mark.parametrize("rule", [SGDValues(), SGDValues(momentum=0.5), AdamValues()])
@pytest.mark.parametrize("kind", [SharedValues(num_values=4), UniformGrid(bits=2)])
def test_a_stack_moves_as_its_weights_alone(assert_same, rule, kind):
    """Also with a learning rate and a number of steps of each weight's own."""
    source = torch.Generator().manual_seed(0)
    reps = [kind.fit(torch.randn(3, 8, generator=source)) for _ in range(3)]
    gradients = [torch.randn(3, 8, generator=source) for _ in range(3)]
    alone = [rep.clone() for rep in reps]
    stack = Representation.stack(reps)
    states, own = ([WeightState(rep, rule) for rep in group] for group in (reps, alone))
    lrs = [0.1, 0.2, 0.0]
    states[1].count_values_step()
    own[1].count_values_step()
    for _ in range(3):
        steps = [ValueStep(stack, gradients, states, lrs)]
        p_step(steps, rule)
        remember(steps, rule)
        for rep, gradient, state, lr in zip(alone, gradients, own, lrs, strict=True):
            steps = [ValueStep(rep, [gradient], [state], [lr])]
            p_step(steps, rule)
            remember(steps, rule)
    for mine, theirs in zip(states, own, strict=True):
        assert_same(dict(mine), dict(theirs))


def test_no_more_values_move_at_once_than_allowed(monkeypatch):
    sizes = []

    class Watched(SGDValues):
        def move_(self, values, gradients, moments, lrs, steps, units) -> None:
            sizes.append([value.numel() for value in values])

    monkeypatch.setattr(pstep, "_AT_ONCE", 8)
    steps = weights(Watched(), 1, [0, 0, 0, 0])
    expected = [[v.numel() for v in step.rep.values.values()] for step in steps]
    p_step(steps, Watched())
    assert [n for batch in sizes for n in batch] == [n for batch in expected for n in batch]
    assert len(sizes) > 1
    assert all(sum(batch) <= 8 or batch in expected for batch in sizes)
