"""Nonzeros rounded one by one: against a recursion that solves afresh, and against none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import Diagonal, Row, SharedValues, Ternary, UniformGrid, parse_scheme
from pvopt.starts import IterativeOBS, OneShotOBS
from pvopt.starts.nonzeros import round_nonzeros

SEEDS = st.integers(0, 2**32 - 1)


def problem(seed: int, rows: int = 5, columns: int = 16):
    draws = torch.Generator().manual_seed(seed)
    options = {"generator": draws, "dtype": torch.float64}
    inputs = torch.randn(60, 5, **options) @ torch.randn(5, columns, **options)
    inputs = inputs + 0.4 * torch.randn(60, columns, **options)
    return torch.randn(rows, columns, **options), inputs


def levels(inner, rep, number: int) -> np.ndarray:
    """All that a nonzero can become."""
    (stream,) = (s for s in inner.streams(rep.inner_shape).values() if s.moves)
    codes = torch.arange(stream.num_codes)[:, None]
    groups = torch.full((stream.num_codes,), number)
    return inner.decode_groups(rep, groups, codes).flatten().numpy()


@pytest.mark.parametrize(
    "inner",
    [UniformGrid(bits=2, group_size=4, integer_zeros=True), Ternary(), SharedValues(num_values=3)],
    ids=str,
)
@given(seed=SEEDS, ragged=st.booleans())
@settings(max_examples=4, deadline=None, derandomize=True)
def test_codes_are_those_of_a_recursion_that_solves_afresh(inner, seed, ragged):
    weight, inputs = problem(seed)
    keys = torch.rand(5, 16, generator=torch.Generator().manual_seed(seed))
    support = torch.zeros(5, 16, dtype=torch.bool)
    if ragged:  # the largest of all rows together; some row may keep all or none
        support.view(-1)[keys.flatten().topk(40).indices] = True
        shape = (1, 40)
    else:
        support.scatter_(1, keys.topk(8).indices, True)
        shape = (5, 8)
    hessian = inputs.T @ inputs + 0.1 * torch.eye(16)
    draws = torch.Generator().manual_seed(0)
    rep = round_nonzeros(weight, support, hessian, inner, shape, generator=draws)
    found, H, number = rep.decode().flatten().numpy(), hessian.numpy(), 0
    for row, mask in zip(weight.numpy(), support.numpy(), strict=True):
        places = np.flatnonzero(mask)
        visits = sorted(range(len(places)), key=lambda k, p=places: -H[p[k], p[k]])
        done, errors = [], []
        for k in visits:
            left = [places[other] for other in visits if other not in done]
            target = row[places[k]]
            if done:
                own = places[done]
                moved = np.array(errors) @ H[np.ix_(own, left)]
                target += np.linalg.solve(H[np.ix_(left, left)], moved)[0]
            every = levels(inner, rep, number + k)
            expected = every[np.abs(every - target).argmin()]
            assert found[number + k] == pytest.approx(expected)
            done.append(k)
            errors.append(row[places[k]] - expected)
        number += len(places)


@pytest.mark.parametrize(
    "form", ["2:4+grid:3g8z", "sparse:50%+grid:3g8", "sparse:50%:tensor+ternary"]
)
@pytest.mark.parametrize("start", [OneShotOBS(), IterativeOBS()], ids=str)
def test_errors_make_up_for_one_another(start, form):
    scheme, logs = parse_scheme(form), []
    for seed in range(6):
        weight, inputs = problem(seed, 8, 32)
        metric = Row(inputs.T @ inputs)
        rep = start.start(weight, scheme, metric=metric)
        sparse = start.start(weight, scheme.parametrization.support, metric=metric).decode()
        alone = scheme.parametrization.represent(
            sparse, sparse != 0, metric=Diagonal(metric.diagonal((8, 32)))
        )
        errors = [metric.relative_error(weight, q.decode()) for q in (rep, alone)]
        logs.append(np.log(errors[0] / errors[1]))
    assert np.mean(logs) < np.log(0.85)
