"""LNQ: values against explicit least squares, codes that no single change improves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import (
    Permutation,
    Row,
    Scheme,
    SharedValues,
    Ternary,
    UniformGrid,
    VectorCodebook,
    row_metric_search,
)
from pvopt.starts import GPTQ, LNQ
from pvopt.starts.linear_values import fit_values_

FORMATS = [
    UniformGrid(bits=2, group_size=4),
    UniformGrid(bits=3, group_size=8, symmetric=True),
    UniformGrid(bits=2, group_size=4, integer_zeros=True),
    Ternary(group_size=4),
    SharedValues(num_values=5),
]
each = pytest.mark.parametrize("parametrization", FORMATS, ids=str)


def problem(seed: int):
    draws = torch.Generator().manual_seed(seed)
    options = {"generator": draws, "dtype": torch.float64}
    inputs = torch.randn(40, 6, **options) @ torch.randn(6, 16, **options)
    inputs = inputs + 0.3 * torch.randn(40, 16, **options)
    return torch.randn(6, 16, **options), inputs


def slopes(rep, name: str) -> np.ndarray:
    """What each entry of a value does to the weight, by differences: linear, so exactly."""
    found, value, before = [], rep.values[name], rep.decode().clone()
    for entry in range(value.numel()):
        value.view(-1)[entry] += 1
        found.append((rep.decode() - before).flatten().numpy())
        value.view(-1)[entry] -= 1
    return np.stack(found)


@each
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_values_are_those_of_least_squares(parametrization, seed):
    weight, inputs = problem(seed)
    rep = parametrization.fit(weight)
    name = list(rep.values)[-1]
    each = slopes(rep, name).reshape(-1, 6, 16) @ inputs.numpy().T
    wrong = inputs.numpy() @ (weight - rep.decode()).numpy().T
    best = np.linalg.lstsq(each.reshape(len(each), -1).T, wrong.T.flatten(), rcond=None)
    expected = rep.values[name].flatten().numpy() + best[0]
    old = rep.values[name].clone()
    fit_values_(rep, weight, Row(inputs.T @ inputs))
    if len(rep.values) == 1:
        # scales keep their sign: where one would not, its row goes part of the way
        new, expected = rep.values[name], torch.from_numpy(expected).view_as(old)
        same = (expected * old > 0).view(len(old), -1).all(1) | (name != "scales")
        assert same.sum() >= len(old) / 2
        torch.testing.assert_close(new[same], expected[same], rtol=1e-4, atol=1e-5)
        assert name != "scales" or bool((new * old > 0).all())
    # whatever came first: no entry of the last value can be improved
    elif name != "scales":
        each = slopes(rep, name).reshape(-1, 6, 16) @ inputs.numpy().T
        left = (inputs.numpy() @ (weight - rep.decode()).numpy().T).T
        gradient = (each * left).sum((1, 2))
        assert np.abs(gradient).max() < 1e-3 * np.abs(each).max() * np.abs(wrong).max()


@each
def test_no_code_alone_and_no_value_alone_can_be_improved(parametrization):
    weight, inputs = problem(1)
    start = LNQ(tolerance=0.0, max_rounds=100)
    metric = Row(inputs.T @ inputs)
    rep = start.start(weight, parametrization, metric=metric)
    own, before = metric.damped(start.damping), rep.decode().clone()
    assert row_metric_search(rep, weight, own) <= 1  # the last values may let a code move
    fit_values_(rep, weight, own)
    torch.testing.assert_close(rep.decode(), before, atol=1e-2, rtol=1e-2)


@each
def test_it_is_ahead_of_gptq(parametrization):
    ratios = []
    for seed in range(5):
        weight, inputs = problem(seed)
        scheme, metric = Scheme(parametrization, Permutation()), Row(inputs.T @ inputs)
        errors = [
            metric.relative_error(weight, start.start(weight, scheme, metric=metric).decode())
            for start in (LNQ(), LNQ(max_rounds=0), GPTQ())
        ]
        assert errors[0] <= errors[1] * 1.001
        ratios.append(np.array(errors[:2]) / errors[2])
    assert (np.mean(ratios, axis=0) < [0.9, 1.0]).all()


def test_what_has_no_closed_form_is_refused_by_name():
    weight, inputs = problem(0)
    books = VectorCodebook(bits=8, group_size=2)
    with pytest.raises(TypeError, match=r"LNQ starts grids.*at most 256.*VectorCodebook with 512"):
        LNQ().start(weight, books, metric=Row(inputs.T @ inputs))
    with pytest.raises(TypeError, match="max_rounds must be an int"):
        LNQ(max_rounds=2.5)
    with pytest.raises(ValueError, match=r"tolerance must be in \[0, 1\), got 1"):
        LNQ(tolerance=1)
