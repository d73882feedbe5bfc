"""Rounding rules: which candidate is taken, and how often."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import ask, step
from torch import Tensor

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AllGroups,
    Candidates,
    Draws,
    FitOptions,
    Forced,
    Nearest,
    Representation,
    Rounding,
    SharedValues,
    SparseNM,
    Stochastic,
    UniformGrid,
    VectorCodebook,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=10, deadline=None, derandomize=True)
DOUBLE = torch.float64

# Relative frequencies of n draws stay within z standard deviations: a fair coin of 40000 draws
# leaves 5 sigma = 0.0125 with probability 6e-7, and the seeds are fixed.
DRAWS = 40_000
SIGMAS = 5.0


def allowed(probability: float) -> float:
    return SIGMAS * math.sqrt(max(probability * (1 - probability), 1e-4) / DRAWS)


def scalar_rep(values: list[float], current: int, count: int) -> Representation:
    codes = torch.full((1, count, 1), current, dtype=torch.uint8)
    table = torch.tensor(values, dtype=DOUBLE)
    return Representation(
        SharedValues(num_values=len(values)), {"entries": codes}, {"values": table}, (1, count)
    )


def take(rule: Rounding, rep: Representation, target: Tensor, seed: int = 0) -> Tensor:
    query = ask(rep, target, generator=torch.Generator().manual_seed(seed))
    return rule.choose(rule.propose(query), query.current(), query.draws)[:, 0]


def test_nearest_takes_the_first_candidate():
    codes = torch.tensor([[[3, 1], [0, 0]], [[2, 2], [1, 1]]])
    found = Candidates(codes, torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    assert torch.equal(Nearest().choose(found, torch.zeros(2, 2).long(), None), codes[:, 0])


def test_forced_takes_the_best_code_unlike_the_current_one():
    codes = torch.tensor([[[3, 1], [0, 0]], [[2, 2], [1, 1]], [[4, 0], [4, 1]]])
    found = Candidates(codes, torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.1, 0.2]]))
    current = torch.tensor([[3, 1], [1, 1], [4, 1]])
    taken = Forced().choose(found, current, None)
    assert taken.tolist() == [[0, 0], [2, 2], [4, 0]]


@some
@given(seed=SEEDS)
def test_forced_moves_every_group_to_the_best_other_code(seed):
    generator = torch.Generator().manual_seed(seed)
    for p in (
        SharedValues(num_values=4),
        UniformGrid(bits=2, group_size=4),
        VectorCodebook(bits=2, group_size=2),
        AdditiveCodebooks(num_codebooks=2, bits=1, in_group=2),
    ):
        rep = p.fit(torch.randn(4, 8, generator=generator, dtype=DOUBLE))
        before = rep.group_codes().clone()
        start = rep.decode()
        target = start + 1e-6  # far too short a step to cross to another code
        layout = rep.layout
        (stream,) = rep.streams.values()
        width = stream.shape[2]
        every = torch.cartesian_prod(*[torch.arange(stream.num_codes)] * width).view(-1, width)
        goal = layout.split(target)
        best = torch.full((layout.num_groups,), torch.inf, dtype=DOUBLE)
        for code in every:
            tried = p.decode_groups(rep, torch.arange(len(goal)), code.expand(len(goal), -1))
            error = (tried - goal).square().sum(1)
            error[(before.long() == code).all(1)] = torch.inf
            best = torch.minimum(best, error)
        moved = step(rep, target, rounding=Forced(), subspace=AllGroups())
        assert moved == layout.num_groups
        assert bool((rep.group_codes() != before).any(1).all())
        torch.testing.assert_close((p.decode_groups(rep) - goal).square().sum(1), best)


def test_forced_keeps_the_only_code_there_is():
    rep = scalar_rep([1.0], 0, 3)
    assert take(Forced(), rep, torch.zeros(3, 1, dtype=DOUBLE)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.9, 1.4, -0.7])
def test_power_rule_keeps_the_nearest_as_often_as_its_formula_says(temperature, target):
    """P = e1^(-1/t) / (e1^(-1/t) + e2^(-1/t)) for the distances e1 <= e2 of the two nearest."""
    values = [0.0, 1.0, 3.0]
    order = sorted(range(3), key=lambda i: abs(values[i] - target))
    e1, e2 = abs(values[order[0]] - target), abs(values[order[1]] - target)
    powers = [e ** (-1 / temperature) for e in (e1, e2)]
    expected = powers[0] / sum(powers)
    rep = scalar_rep(values, 2, DRAWS)
    taken = take(Stochastic("power", temperature), rep, torch.full((DRAWS, 1), target).double())
    frequency = float((taken == order[0]).double().mean())
    if e1 == e2:  # either may be called the nearest
        assert set(taken.tolist()) == {0, 1}
    assert abs(frequency - expected) <= allowed(expected)
    assert bool(((taken == order[0]) | (taken == order[1])).all())


def test_power_rule_for_vectors_uses_euclidean_distances():
    book = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [50.0, 50.0], [90.0, 0.0]]], dtype=DOUBLE)
    rep = Representation(
        VectorCodebook(bits=2, group_size=2),
        {"entries": torch.zeros(1, DRAWS, 1, dtype=torch.uint8)},
        {"codebooks": book, "scales": torch.ones(1, 1, dtype=DOUBLE)},
        (1, 2 * DRAWS),
    )
    target = torch.tensor([[0.6, 0.8]], dtype=DOUBLE).expand(DRAWS, 2)  # distances 1 and 4
    taken = take(Stochastic("power", 0.5), rep, target)
    expected = 1 / (1 + (1 / 4) ** 2)
    assert abs(float((taken == 0).double().mean()) - expected) <= allowed(expected)


STOCHASTIC = [Stochastic(), Stochastic("power"), Stochastic("power", 9.0)]


@pytest.mark.parametrize("rule", STOCHASTIC)
def test_an_exact_hit_is_always_kept(rule):
    for hit in (0.0, 1.0, 3.0):
        rep = scalar_rep([0.0, 1.0, 3.0], 1, 1000)
        taken = take(rule, rep, torch.full((1000, 1), hit, dtype=DOUBLE))
        assert bool((rep.values["values"][taken] == hit).all())


def test_an_exact_hit_of_two_equal_values_takes_either():
    rep = scalar_rep([1.0, 1.0, 5.0], 2, 100)
    for rule in STOCHASTIC:
        taken = take(rule, rep, torch.ones(100, 1, dtype=DOUBLE))
        assert bool((taken != 2).all())


def test_extreme_temperatures_neither_overflow_nor_divide_by_zero():
    rep = scalar_rep([0.0, 1e-3], 0, 1000)
    target = torch.full((1000, 1), 1e-9, dtype=DOUBLE)
    assert bool((take(Stochastic("power", 1e-3), rep, target) == 0).all())
    hot = take(Stochastic("power", 1e6), rep, target).double().mean()
    assert 0.4 < float(hot) < 0.6


def test_a_single_code_is_kept():
    rep = scalar_rep([1.0], 0, 10)
    for rule in STOCHASTIC:
        assert bool((take(rule, rep, torch.zeros(10, 1, dtype=DOUBLE)) == 0).all())


@pytest.mark.parametrize("target", [-1.0, -0.75, -0.2, 0.0, 0.3, 1.0, 1.9, 2.5])
def test_linear_rule_is_unbiased_inside_the_range(target):
    """The mean of the decoded weight is the target, within 5 standard errors."""
    for p, values in (
        (SharedValues(num_values=4), {"values": torch.tensor([2.5, -1.0, 0.5, 1.0], dtype=DOUBLE)}),
        (
            UniformGrid(bits=2),
            {
                "scales": torch.tensor([[1.25]], dtype=DOUBLE),
                "zeros": torch.tensor([[0.8]], dtype=DOUBLE),
            },
        ),
    ):
        codes = torch.zeros(1, DRAWS, 1, dtype=torch.uint8)
        (name,) = p.streams((1, DRAWS))
        rep = Representation(p, {name: codes}, values, (1, DRAWS))
        goal = torch.full((DRAWS, 1), target, dtype=DOUBLE)
        taken = take(Stochastic("linear"), rep, goal)
        decoded = p.decode_groups(rep, torch.arange(DRAWS), taken[:, None])
        bound = SIGMAS * max(float(decoded.std()), 1e-9) / math.sqrt(DRAWS)
        assert abs(float(decoded.mean()) - target) <= bound
        neighbours = decoded.unique()
        assert len(neighbours) <= 2
        assert float((neighbours - target).abs().max()) <= 1.5


@pytest.mark.parametrize(("target", "level"), [(-7.0, 0.0), (-0.01, 0.0), (3.01, 3.0), (99.0, 3.0)])
def test_linear_rule_takes_the_outermost_level_outside_the_range(target, level):
    grid = UniformGrid(bits=2).fit(torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=DOUBLE))
    table = scalar_rep([0.0, 3.0, 1.0], 2, 4)
    for rep in (grid, table):
        goal = torch.full((4, 1), target, dtype=DOUBLE)
        for seed in range(20):
            taken = take(Stochastic("linear"), rep, goal, seed)
            decoded = rep.parametrization.decode_groups(rep, torch.arange(4), taken[:, None])
            assert decoded.flatten().tolist() == pytest.approx([level] * 4)


@some
@given(seed=SEEDS)
def test_linear_rule_gets_by_with_negative_and_zero_scales(seed):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([[-0.5], [0.0], [0.7]], dtype=DOUBLE)
    zeros = 3 * torch.rand(3, 1, generator=generator, dtype=DOUBLE)
    codes = torch.zeros(3, 5, 1, dtype=torch.uint8)
    values = {"scales": scales, "zeros": zeros}
    rep = Representation(UniformGrid(bits=2), {"levels": codes}, values, (3, 5))
    target = torch.randn(15, 1, generator=generator, dtype=DOUBLE)
    taken = take(Stochastic("linear"), rep, target, seed)
    assert int(taken.min()) >= 0
    assert int(taken.max()) <= 3
    decoded = rep.parametrization.decode_groups(rep, None, taken[:, None])
    low = torch.minimum(scales * (0 - zeros), scales * (3 - zeros)).repeat_interleave(5)[:, None]
    high = torch.maximum(scales * (0 - zeros), scales * (3 - zeros)).repeat_interleave(5)[:, None]
    inside = (target >= low) & (target <= high)
    gap = scales.abs().repeat_interleave(5)[:, None]
    assert bool(((decoded - target).abs() <= gap + 1e-12)[inside].all())
    expected = torch.where(target < low, low, high)
    torch.testing.assert_close(decoded[~inside], expected[~inside])


def test_draws_come_from_the_generator_alone():
    rep = scalar_rep([0.0, 1.0], 0, 200)
    target = torch.full((200, 1), 0.4, dtype=DOUBLE)
    state = torch.get_rng_state()
    for rule in STOCHASTIC:
        assert torch.equal(take(rule, rep, target, 3), take(rule, rep, target, 3))
        assert not torch.equal(take(rule, rep, target, 3), take(rule, rep, target, 4))
    assert torch.equal(state, torch.get_rng_state())


VECTORS = [
    VectorCodebook(bits=4, group_size=2),
    VectorCodebook(bits=1, group_size=4),
    AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2),
    E8P(bits=2),
    SparseNM(nonzeros=1, group_size=2),
]


@pytest.mark.parametrize("length", [1e-3, 0.3], ids=["short", "long"])
@pytest.mark.parametrize("p", VECTORS, ids=str)
@some
@given(seed=SEEDS)
def test_linear_rule_is_unbiased_along_the_update_of_vectors(p, length, seed):
    """By enumeration: the two codes with their probabilities, against the target."""
    generator = torch.Generator().manual_seed(seed)
    rep = p.fit(torch.randn(4, 16, generator=generator, dtype=DOUBLE))
    start = p.decode_groups(rep)
    target = start + length * torch.randn(start.shape, generator=generator, dtype=DOUBLE)
    query = ask(rep, target)
    found = Stochastic().propose(query)
    first, second = (p.decode_moved(query, codes) for codes in found.codes.unbind(1))
    assert torch.equal(found.codes[:, 0], p.candidates(query.but(count=2)).codes[:, 0])
    along, beyond = found.errors.sqrt().unbind(1)
    residual = target - first
    torch.testing.assert_close(along, residual.norm(dim=1))
    reached = beyond.isfinite()  # elsewhere no code lies ahead
    assert bool(reached.any())
    share = along / (along + beyond)  # with which the second code is drawn
    mean = first + torch.where(reached, share, 0.0)[:, None] * (second - first)
    progress = ((mean - first) * residual).sum(1)
    exact = reached & (beyond > 0)  # 0: the code ahead is nearer than the target, and is taken
    torch.testing.assert_close(progress[exact], residual.square().sum(1)[exact])
    assert bool((progress[reached] > 0).all())


@settings(some, max_examples=6)
@given(seed=SEEDS)
def test_linear_rule_draws_against_the_cell_that_the_ray_enters_next(seed):
    """Followed in small steps, with all codes of the codebook."""
    generator = torch.Generator().manual_seed(seed)
    p = VectorCodebook(bits=3, group_size=2)
    rep = p.fit(torch.randn(4, 8, generator=generator, dtype=DOUBLE))
    start = p.decode_groups(rep)
    update = 1e-6 * torch.randn(start.shape, generator=generator, dtype=DOUBLE)
    found = Stochastic().propose(ask(rep, start + update))
    for group, ahead in enumerate(found.errors[:, 1].isfinite().tolist()):
        own = torch.full((8,), group)
        points = p.decode_groups(rep, own, torch.arange(8)[:, None])
        lengths = torch.logspace(4, 14, 4000, dtype=DOUBLE)[:, None]
        ray = start[group] + lengths * update[group]
        nearest = torch.cdist(ray, points).argmin(1)
        left = nearest[nearest != found.codes[group, 0, 0]]
        assert (len(left) > 0) == ahead
        if ahead:
            assert found.codes[group, 1, 0] == left[0]


@pytest.mark.parametrize("p", [SharedValues(num_values=4), UniformGrid(bits=2), *VECTORS], ids=str)
def test_short_steps_count_on_average_in_the_direction_of_the_update(p):
    """Of rounding at random to either neighbour, whichever way the update points, nothing is left.

    The share of the update that the change of the codes realises; about 1, less the steps that
    have no code ahead, and with the noise of a few thousand groups.
    """
    generator = torch.Generator().manual_seed(0)
    rep = p.fit(torch.randn(32, 64, generator=generator), options=FitOptions(iterations=0))
    before = rep.decode()
    update = 0.05 * torch.randn(before.shape, generator=generator)
    step(rep, before + update, rounding=Stochastic(), subspace=AllGroups(), draws=generator)
    share = float(((rep.decode() - before) * update).sum() / update.square().sum())
    assert 0.4 < share < 1.3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "cubic"}, "rule must be 'linear' or 'power', got 'cubic'"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_bad_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Stochastic(**arguments)


@pytest.mark.parametrize("rule", [*STOCHASTIC, Nearest(), Forced()], ids=str)
def test_what_a_weight_rounds_to_does_not_depend_on_the_others_in_a_stack(rule):
    generator = torch.Generator().manual_seed(0)
    reps = [scalar_rep([0.0, 1.0 + i, 3.0], 2, 40) for i in range(3)]
    targets = 3 * torch.rand(3, 40, 1, generator=generator, dtype=DOUBLE)
    names = ["a", "b", "c"]
    alone = []
    for name, rep, target in zip(names, reps, targets, strict=True):
        query = ask(rep.clone(), target)
        draws = Draws.of_step(5, [name], 9, target.device)
        alone.append(rule.choose(rule.propose(query), query.current(), draws))
    query = ask(Representation.stack(reps), targets.flatten(0, 1))
    draws = Draws.of_step(5, names, 9, targets.device)
    found = rule.choose(rule.propose(query), query.current(), draws)
    assert torch.equal(found, torch.cat(alone))
    if isinstance(rule, Stochastic):  # and each weight draws by itself
        assert len({tuple(part.flatten().tolist()) for part in alone}) == 3
