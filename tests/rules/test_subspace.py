"""Subspace rules: sizes, distinctness, order, frequencies; the trust region."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import step

from pvopt import (
    AllGroups,
    Decreases,
    Draws,
    Gain,
    Greedy,
    Nearest,
    Proportional,
    SharedValues,
    Subspace,
    TrustRegion,
    Uniform,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None, derandomize=True)
RULES = [Greedy(0.1), Uniform(0.1), Proportional(0.1), Proportional(0.3, temperature=5.0)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def select(rule: Subspace, magnitudes: torch.Tensor, source=None, **how) -> torch.Tensor:
    """Select groups of one weight."""
    draws = Draws.of(source, magnitudes.device)
    (found,) = rule.select(magnitudes[None], draws, **how)
    return found


def accept(region: TrustRegion, changes: torch.Tensor, norm: torch.Tensor) -> int:
    """Return how many changes of one weight are accepted: a prefix."""
    (found,) = region.accept(changes[None], norm[None])
    count = int(found.sum())
    assert bool(found[:count].all())
    return count


@some
@given(seed=SEEDS, n=st.integers(1, 300), fraction=st.floats(0.001, 1.0), ordered=st.booleans())
def test_a_fraction_selects_that_many_distinct_groups(seed, n, fraction, ordered):
    magnitudes = torch.rand(n, generator=seeded(seed))
    magnitudes[torch.rand(n, generator=seeded(seed + 1)) < 0.3] = 0.0
    for kind in (Greedy, Uniform, Proportional):
        chosen = select(kind(fraction), magnitudes, seeded(seed), ordered=ordered)
        assert chosen.dtype == torch.int64
        assert len(chosen) == kind(fraction).count(n)
        assert len(chosen.unique()) == len(chosen)
        assert 0 <= int(chosen.min()) <= int(chosen.max()) < n
        assert 1 <= len(chosen) <= n
        assert fraction * n - 1e-5 <= len(chosen) < fraction * n + 1


@pytest.mark.parametrize(
    ("fraction", "n", "count"),
    [(0.01, 100, 1), (0.01, 101, 2), (0.01, 3, 1), (1.0, 7, 7), (0.07, 100, 7), (0.5, 5, 3)],
)
def test_counts(fraction, n, count):
    assert Greedy(fraction).count(n) == count


@some
@given(seed=SEEDS, n=st.integers(1, 100))
def test_greedy_equals_a_sort(seed, n):
    magnitudes = torch.rand(n, generator=seeded(seed))
    order = magnitudes.argsort(descending=True)
    chosen = select(Greedy(0.25), magnitudes)
    assert torch.equal(chosen, order[: len(chosen)])
    unordered = select(Greedy(0.25), magnitudes, ordered=False)
    assert set(unordered.tolist()) == set(chosen.tolist())


@some
@given(seed=SEEDS, n=st.integers(1, 100))
def test_all_groups_selects_every_group(seed, n):
    magnitudes = torch.rand(n, generator=seeded(seed))
    assert torch.equal(select(AllGroups(), magnitudes), magnitudes.argsort(descending=True))
    assert sorted(select(AllGroups(), magnitudes, ordered=False).tolist()) == list(range(n))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_draws_come_from_the_generator_alone(rule):
    magnitudes = torch.rand(200, generator=seeded(0))
    state = torch.get_rng_state()
    one, two, other = (select(rule, magnitudes, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert torch.equal(one, other) == isinstance(rule, Greedy)
    assert torch.equal(state, torch.get_rng_state())


def test_proportional_without_temperature_is_greedy():
    magnitudes = torch.rand(500, generator=seeded(3)) + torch.arange(500) / 50
    cold = Proportional(0.1, temperature=1e-9)
    for seed in range(5):
        chosen = select(cold, magnitudes, seeded(seed))
        assert torch.equal(chosen, select(Greedy(0.1), magnitudes))


def frequencies(rule: Uniform | Proportional, magnitudes: torch.Tensor, draws: int) -> torch.Tensor:
    generator = Draws.of(seeded(0), magnitudes.device)
    counts = torch.zeros(len(magnitudes), dtype=torch.float64)
    for _ in range(draws):
        counts[select(rule, magnitudes, generator)] += 1
    return counts / draws


def close(found: torch.Tensor, expected: torch.Tensor, draws: int) -> bool:
    """Within 5 standard deviations of a relative frequency."""
    allowed = 5 * (expected * (1 - expected) / draws).sqrt() + 1e-12
    return bool(((found - expected).abs() <= allowed).all())


def test_uniform_includes_every_group_equally_often():
    found = frequencies(Uniform(0.3), torch.tensor([0.0, 1.0, 5.0, 2.0, 1.0] * 2), 4000)
    assert close(found, torch.full((10,), 0.3, dtype=torch.float64), 4000)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_proportional_draws_one_group_with_the_stated_probability(temperature):
    magnitudes = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    weights = magnitudes ** (1 / temperature)
    found = frequencies(Proportional(0.25, temperature), magnitudes, 8000)
    assert close(found, weights / weights.sum(), 8000)


def test_proportional_draws_two_groups_without_replacement():
    """Inclusion of i: p_i + sum_j p_j p_i / (1 - p_j), for successive draws."""
    magnitudes = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    p = magnitudes / magnitudes.sum()
    expected = torch.stack(
        [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    )
    assert close(frequencies(Proportional(0.5), magnitudes, 8000), expected, 8000)


def test_proportional_at_high_temperature_is_uniform():
    magnitudes = torch.tensor([1e-3, 1.0, 1e3, 10.0])
    found = frequencies(Proportional(0.25, temperature=1e9), magnitudes, 4000)
    assert close(found, torch.full((4,), 0.25, dtype=torch.float64), 4000)


def test_proportional_takes_groups_without_wish_last():
    magnitudes = torch.zeros(20)
    magnitudes[[3, 11]] = torch.tensor([1e-20, 1.0])
    for seed in range(20):
        chosen = select(Proportional(0.1), magnitudes, seeded(seed))
        assert set(chosen.tolist()) == {3, 11}
        assert len(select(Proportional(0.5), magnitudes, seeded(seed)).unique()) == 10


def test_many_groups_do_not_exhaust_the_draw():
    """torch.multinomial fails above 2^24 items."""
    magnitudes = torch.ones(2**24 + 2)
    chosen = select(Proportional(1e-6), magnitudes, seeded(0))
    assert len(chosen) == math.ceil(1e-6 * (2**24 + 2))
    assert len(chosen.unique()) == len(chosen)


@some
@given(seed=SEEDS, n=st.integers(1, 50), ratio=st.floats(1e-3, 2.0))
def test_trust_region_accepts_the_longest_prefix_that_fits(seed, n, ratio):
    changes = torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    norm = torch.rand((), generator=seeded(seed + 1), dtype=torch.float64) * n
    accepted = accept(TrustRegion(ratio), changes, norm)
    limit = ratio**2 * float(norm)
    assert 1 <= accepted <= n
    if accepted > 1:
        assert float(changes[:accepted].sum()) <= limit * (1 + 1e-9)
    if accepted < n:
        assert float(changes[: accepted + 1].sum()) > limit * (1 - 1e-9)


def test_trust_region_of_nothing_accepts_nothing():
    assert accept(TrustRegion(0.1), torch.empty(0), torch.tensor(1.0)) == 0


def test_groups_that_stay_take_no_place_of_the_first_that_moves():
    changes = torch.tensor([0.0, 0.0, 9.0, 0.0, 9.0])
    assert accept(TrustRegion(0.1), changes, torch.tensor(1.0)) == 4


def test_trust_regions_of_several_weights_do_not_mix():
    changes = torch.rand(3, 20, generator=seeded(0), dtype=torch.float64)
    norms = torch.tensor([10.0, 1.0, 0.0], dtype=torch.float64)
    found = TrustRegion(0.5).accept(changes, norms)
    alone = [
        TrustRegion(0.5).accept(c[None], n[None])[0] for c, n in zip(changes, norms, strict=True)
    ]
    assert torch.equal(found, torch.stack(alone))
    assert found.sum(1).tolist() == sorted(found.sum(1).tolist(), reverse=True)


def test_trust_region_of_a_zero_weight_accepts_one():
    assert accept(TrustRegion(0.1), torch.ones(3), torch.tensor(0.0)) == 1


def test_trust_region_sums_in_double_precision():
    changes = torch.full((1 << 12,), 1e-8)
    changes[0] = 1.0
    # the limit fits exactly half of the small changes, which single precision would not count
    limit = torch.tensor(1.0 + 1e-8 * (1 << 11), dtype=torch.float64)
    assert abs(accept(TrustRegion(1.0), changes, limit) - (1 << 11)) <= 1


@some
@given(seed=SEEDS, ratio=st.sampled_from([1e-4, 0.05, 0.3]), fraction=st.floats(0.05, 1.0))
def test_a_v_step_stays_in_the_trust_region_and_moves_at_least_one_group(seed, ratio, fraction):
    start = torch.randn(8, 8, generator=seeded(seed), dtype=torch.float64)
    rep = SharedValues(num_values=8).fit(start)
    target = start + torch.randn(8, 8, generator=seeded(seed + 1), dtype=torch.float64)
    before, free = rep.decode(), rep.clone()
    rules = {"rounding": Nearest(), "subspace": Greedy(fraction)}
    wanted = step(free, target, **rules)
    moved = step(rep, target, **rules, trust_region=TrustRegion(ratio))
    weight = rep.decode()
    assert (moved >= 1) == (wanted >= 1)
    assert moved <= wanted
    if moved > 1:
        assert float((weight - before).norm()) <= ratio * float(before.norm()) * (1 + 1e-12)
    # those that moved are the most important of those that wanted to
    asked = (target - before).abs().flatten()
    changed = (weight != before).flatten()
    others = (free.decode() != before).flatten() & ~changed
    if changed.any() and others.any():
        assert float(asked[changed].min()) >= float(asked[others].max())


@pytest.mark.parametrize("kind", [Greedy, Uniform, Proportional])
@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_bad_fractions_are_refused(kind, fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        kind(fraction)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_temperatures_and_ratios_are_refused(value):
    with pytest.raises(ValueError, match="temperature must be positive"):
        Proportional(0.1, temperature=value)
    with pytest.raises(ValueError, match="ratio must be positive"):
        TrustRegion(value)


@some
@given(seed=SEEDS, n=st.integers(1, 300), fraction=st.floats(0.01, 1.0), share=st.floats(0, 1))
def test_gain_is_an_exact_top_k_that_searches_no_group_twice(seed, n, fraction, share):
    """Decreases anywhere below their bounds, a share of them zero."""
    bounds = torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    gains = bounds * torch.rand(n, generator=seeded(seed + 1), dtype=torch.float64)
    gains[torch.rand(n, generator=seeded(seed + 2)) < share] = 0.0
    searched = []

    def of(groups):
        searched.extend(groups.tolist())
        return gains[groups]

    chosen = select(Gain(fraction), torch.ones(n), decreases=Decreases(bounds, of))
    order = gains.argsort(descending=True, stable=True)[: Gain(fraction).count(n)]
    assert torch.equal(chosen, order[gains[order] > 0])
    assert len(set(searched)) == len(searched) <= n


def test_gain_stops_where_no_bound_is_left_that_could_matter():
    bounds = torch.linspace(1, 0.001, 1000)
    searched = []

    def of(groups):
        searched.append(len(groups))
        return 0.9 * bounds[groups]

    chosen = select(Gain(0.01), bounds, decreases=Decreases(bounds, of))
    assert torch.equal(chosen, torch.arange(10))
    assert searched == [20, 40, 80]  # the 10th decrease is 0.89, the 141st bound 0.86
    still = select(Gain(0.01), bounds, decreases=Decreases(torch.zeros(1000), of))
    assert len(still) == 0
    assert searched == [20, 40, 80]  # groups that must stay are not searched


def test_gain_needs_decreases():
    with pytest.raises(TypeError, match="decreases must be given"):
        select(Gain(0.1), torch.ones(3))


@pytest.mark.parametrize("rule", [AllGroups(), *RULES], ids=str)
@pytest.mark.parametrize("ordered", [True, False])
def test_what_is_selected_does_not_depend_on_the_others_in_a_stack(rule, ordered):
    magnitudes = torch.rand(3, 60, generator=seeded(0))
    device, names = magnitudes.device, ["a", "b", "c"]
    found = rule.select(magnitudes, Draws.of_step(1, names, 2, device), ordered=ordered)
    for name, own, chosen in zip(names, magnitudes, found, strict=True):
        draws = Draws.of_step(1, [name], 2, device)
        assert torch.equal(rule.select(own[None], draws, ordered=ordered)[0], chosen)
