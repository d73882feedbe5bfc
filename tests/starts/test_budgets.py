"""A budget that all rows share: exact for convex errors, as good as greedy removal one by one."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import Row, Sparse
from pvopt.starts import IterativeOBS
from pvopt.starts.budgets import shared_removals

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, unit=st.integers(1, 3), data=st.data())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_rising_costs_are_shared_best(seed, unit, data):
    """Against every way to share whole steps; ties are frequent."""
    draws = np.random.default_rng(seed)
    costs = np.sort(draws.integers(0, 4, size=(3, 3)), axis=1)
    errors = np.concatenate([np.zeros((3, 1)), costs.cumsum(1)], axis=1)
    total = data.draw(st.integers(0, 9 * unit))
    counts = shared_removals(torch.from_numpy(errors), unit, total)
    assert int(counts.sum()) == total
    assert 0 <= int(counts.min()) <= int(counts.max()) <= 3 * unit
    assert int((counts % unit != 0).sum()) <= 1
    if total % unit == 0:
        ways = [w for w in itertools.product(range(4), repeat=3) if sum(w) * unit == total]
        best = min(sum(errors[row, steps] for row, steps in enumerate(way)) for way in ways)
        assert sum(errors[row, n // unit] for row, n in enumerate(counts.tolist())) == best


def greedy(weight: np.ndarray, hessian: np.ndarray, removals: int) -> np.ndarray:
    """Remove the one weight of all that costs least, again and again; solve afresh each time."""
    kept = np.ones(weight.shape, dtype=bool)
    best = weight.copy()
    for _ in range(removals):
        costs = np.full(weight.shape, np.inf)
        for row, own in enumerate(kept):
            inverse = np.linalg.inv(hessian[np.ix_(own, own)])
            costs[row, own] = best[row, own] ** 2 / np.diag(inverse)
        row, column = np.unravel_index(costs.argmin(), costs.shape)
        kept[row, column] = False
        own = kept[row]
        best[row] = 0
        best[row, own] = np.linalg.solve(hessian[np.ix_(own, own)], (hessian @ weight[row])[own])
    return best


def test_as_good_as_exact_greedy_removal():
    logs, gains = [], []
    for seed in range(6):
        draws = torch.Generator().manual_seed(seed)
        options = {"generator": draws, "dtype": torch.float64}
        inputs = torch.randn(60, 16, **options) @ torch.randn(16, 16, **options)
        weight = torch.randn(6, 16, **options) * torch.randn(6, 1, **options).exp()
        hessian, start = inputs.T @ inputs, IterativeOBS()
        metric = Row(hessian)
        shared, rows = (
            start.start(weight, Sparse(density=0.5, per=per), metric=metric).decode()
            for per in ("tensor", "row")
        )
        damped = metric.damped(start.damping).hessian.numpy()
        theirs = torch.from_numpy(greedy(weight.numpy(), damped, 48))
        errors = [float(metric.squared_norm(weight - q)) for q in (shared, theirs, rows)]
        assert int((shared != 0).sum()) == 48
        logs.append(np.log(errors[0] / errors[1]))
        gains.append(errors[0] / errors[2])
    assert np.mean(logs) < 0.02
    assert np.mean(gains) < 0.9


def test_rows_of_no_worth_go_whole():
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=draws)
    weight[:5] *= 1e-6
    inputs = torch.randn(40, 8, generator=draws)
    form = Sparse(density=0.05, per="tensor")  # two of 48
    rep = IterativeOBS().start(weight, form, metric=Row(inputs.T @ inputs))
    assert form.support(rep)[:5].sum() == 0
    assert form.support(rep)[5].sum() == 2
