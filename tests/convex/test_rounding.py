"""Rounding rules: probabilities, exact hits, the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt.convex import Nearest, Stochastic

SEEDS = st.integers(0, 2**32 - 1)
DRAWS = 20_000


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_nearest_is_nearest(seed):
    generator = np.random.default_rng(seed)
    target, values = generator.standard_normal((2, 5)), generator.standard_normal((2, 3))
    codes = Nearest().choose(target, values)
    for run in range(2):
        for i in range(5):
            distances = np.abs(values[run] - target[run, i])
            assert distances[codes[run, i]] == distances.min()


def test_ties_take_the_first_value():
    assert Nearest().choose(np.array([0.5, 2.0]), np.array([0.0, 1.0, 2.0, 2.0])).tolist() == [0, 2]


@settings(max_examples=12, deadline=None)
@given(seed=SEEDS, temperature=st.sampled_from([0.3, 1.0, 2.0]))
def test_power_rule_has_its_probabilities(seed, temperature):
    """P(nearest) = e1^(-1/t) / (e1^(-1/t) + e2^(-1/t)) (baselines)."""
    generator = np.random.default_rng(seed)
    values, target = generator.standard_normal(4), float(generator.standard_normal())
    drawn = Stochastic("power", temperature).choose(np.full(DRAWS, target), values, generator)
    order = np.argsort(np.abs(values - target))
    near, far = np.abs(values - target)[order[:2]]
    odds = np.array([near, far]) ** (-1 / temperature)
    assert set(drawn.tolist()) <= set(order[:2].tolist())
    assert (drawn == order[0]).mean() == pytest.approx(odds[0] / odds.sum(), abs=0.025)


@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_linear_rule_is_unbiased_between_the_outermost_values(seed):
    """E[round(t)] = t (the unbiased rule for scalar grids)."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(4)
    target = float(generator.uniform(values.min(), values.max()))
    drawn = Stochastic("linear").choose(np.full(DRAWS, target), values, generator)
    spread = values.max() - values.min()
    assert values[drawn].mean() == pytest.approx(target, abs=0.025 * spread)
    chosen = np.unique(values[drawn])
    between = (values > chosen.min()) & (values < chosen.max())
    assert not between.any()  # only the two neighbours


@pytest.mark.parametrize("rule", ["power", "linear"])
def test_hits_and_edges(rule):
    generator = np.random.default_rng(0)
    chooser, values = Stochastic(rule), np.array([1.0, 0.0, 2.0])
    hits = chooser.choose(np.repeat(values, 500), values, generator)
    assert np.array_equal(hits, np.repeat(np.arange(3), 500))
    alone = chooser.choose(np.full(50, 0.3), np.array([5.0]), generator)
    assert (alone == 0).all()
    doubled = chooser.choose(np.full(50, 1.0), np.array([1.0, 1.0]), generator)
    assert (doubled == 0).all()
    outside = Stochastic("linear").choose(np.array([-9.0, 9.0]), values, generator)
    assert outside.tolist() == [1, 2]


def test_invalid_settings_are_named():
    with pytest.raises(ValueError, match="rule must be 'power' or 'linear', got 'odd'"):
        Stochastic("odd")
    with pytest.raises(ValueError, match="temperature must be positive"):
        Stochastic(temperature=-1.0)
    with pytest.raises(ValueError, match="generator must be given"):
        Stochastic().choose(np.zeros(1), np.zeros(2))
