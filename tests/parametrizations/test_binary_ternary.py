"""Closed-form scales of binary and ternary weights against search over all codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import PARAMETRIZATIONS, Binary, Diagonal, Ternary

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=12, deadline=None, derandomize=True)


def least_error(weight: np.ndarray, metric: np.ndarray, levels: tuple[int, ...]) -> float:
    """Weighted least squares of the scale, for every choice of levels."""
    best = np.inf
    for choice in itertools.product(levels, repeat=len(weight)):
        level = np.array(choice, dtype=float)
        energy = (metric * level**2).sum()
        scale = (metric * level * weight).sum() / energy if energy > 0 else 0.0
        best = min(best, (metric * (weight - scale * level) ** 2).sum())
    return best


@pytest.mark.parametrize(("kind", "levels"), [(Binary, (-1, 1)), (Ternary, (-1, 0, 1))])
@some
@given(
    seed=SEEDS,
    size=st.integers(1, 6),
    with_metric=st.booleans(),
    tails=st.sampled_from([1.0, 3.0]),
)
def test_the_fit_is_the_best_of_all(kind, levels, seed, size, with_metric, tails):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((4, 2 * size))
    weight = np.sign(weight) * np.abs(weight) ** tails
    metric = rng.exponential(size=weight.shape) ** 3 if with_metric else np.ones_like(weight)
    metric[0, 0] = metric[1, 0] = 0.0 if with_metric else 1.0
    rep = kind(group_size=size).fit(
        torch.from_numpy(weight), metric=Diagonal(torch.from_numpy(metric)) if with_metric else None
    )
    errors = metric * (rep.decode().numpy() - weight) ** 2
    for row, start in itertools.product(range(4), (0, size)):
        part = slice(start, start + size)
        wanted = least_error(weight[row, part], metric[row, part], levels)
        assert errors[row, part].sum() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", [1, 4, 5, 6, 30, 1003])
def test_five_ternary_codes_take_a_byte(count):
    p = Ternary()
    codes = torch.randint(3, (1, count, 1), generator=torch.Generator().manual_seed(count))
    codes = codes.to(torch.uint8)
    stream = p.streams((1, count))["levels"]
    packed = stream.pack(codes)
    assert packed.numel() == -(-count // 5)
    assert 8 * packed.numel() == stream.stored_bits
    assert torch.equal(stream.unpack(packed), codes)


def test_codes_that_do_not_exist_are_refused():
    rep = Ternary().fit(torch.tensor([[1.0, 0.0]]))
    with pytest.raises(ValueError, match=r"codes of 'levels' must be in 0..2, got 0..3"):
        rep.check_codes({"levels": torch.tensor([[[0], [3]]])})
    with pytest.raises(ValueError, match="codes beyond 2"):
        Ternary().streams((1, 5))["levels"].unpack(torch.tensor([243], dtype=torch.uint8))


@pytest.mark.parametrize("kind", [Binary, Ternary])
def test_settings(kind):
    for bad, error in ((0, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="group_size"):
            kind(group_size=bad)
    with pytest.raises(ValueError, match=r"group_size=4 does not divide"):
        kind(group_size=4).fit(torch.ones(2, 6))


@pytest.mark.parametrize(
    ("text", "parametrization"),
    [
        ("binary", Binary()),
        ("binary:g64", Binary(group_size=64)),
        ("ternary", Ternary()),
        ("ternary:g32", Ternary(group_size=32)),
    ],
)
def test_short_names(text, parametrization):
    assert PARAMETRIZATIONS.parse(text) == parametrization
    assert PARAMETRIZATIONS.name(parametrization) == text
