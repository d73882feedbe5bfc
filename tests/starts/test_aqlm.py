"""AQLM's alternation: monotone in the layer's error, and better than what it starts from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import AdditiveCodebooks, Row, SearchOptions, UniformGrid, VectorCodebook
from pvopt.starts import AQLM, GPTQ, Fit

SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=2, deadline=None, derandomize=True)
FORMATS = [
    AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=3, in_group=2, out_group=2, scale_group=8),
    VectorCodebook(bits=3, group_size=2),
    UniformGrid(bits=2, group_size=8),
]


def draw(seed: int, rows: int = 12, columns: int = 16):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    inputs = torch.randn(60, 6, **options) @ torch.randn(6, columns, **options)
    inputs += 0.3 * torch.randn(60, columns, **options)
    return torch.randn(rows, columns, **options), inputs


def error(rep, weight, metric):
    """tr (W - Wq) M (W - Wq)', by NumPy."""
    difference = (weight - rep.decode()).double().numpy()
    return np.trace(difference @ metric.hessian.numpy() @ difference.T)


@pytest.mark.parametrize("parametrization", FORMATS, ids=repr)
@given(seed=SEEDS)
@few
def test_no_round_raises_the_layer_error(parametrization, seed):
    weight, inputs = draw(seed)
    own = Row(inputs.T @ inputs)
    metric = own.damped(AQLM().damping)
    reps = [GPTQ().start(weight, parametrization, metric=own)]
    for rounds in range(1, 4):  # the first rounds of a longer run are those of a shorter one
        method = AQLM(max_rounds=rounds, tolerance=0.0)
        reps.append(method.start(weight, parametrization, metric=own))
    errors = [error(rep, weight, metric) for rep in reps]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0]
    plain = Fit().start(weight, parametrization)
    assert errors[-1] < 0.6 * error(plain, weight, metric)


def test_a_round_without_progress_is_the_last():
    weight, inputs = draw(0)
    metric, books = Row(inputs.T @ inputs), FORMATS[0]
    one = AQLM(max_rounds=1).start(weight, books, metric=metric)
    satisfied = AQLM(max_rounds=50, tolerance=0.99).start(weight, books, metric=metric)
    assert torch.equal(one.decode(), satisfied.decode())
    more = AQLM(max_rounds=2, tolerance=0.0).start(weight, books, metric=metric)
    assert not torch.equal(one.decode(), more.decode())


def test_values_alone_can_be_tuned_and_carry_no_gradients():
    weight, inputs = draw(1)
    rep = AQLM().start(weight, FORMATS[0], metric=Row(inputs.T @ inputs))
    assert all(v.grad is None and not v.requires_grad for v in rep.values.values())
    wild = AQLM(lr=100.0, max_rounds=1).start(weight, FORMATS[0], metric=Row(inputs.T @ inputs))
    still = AQLM(steps=0, max_rounds=1).start(weight, FORMATS[0], metric=Row(inputs.T @ inputs))
    assert torch.equal(wild.decode(), still.decode())


def test_wrong_settings_are_named():
    for name, value in (
        ("max_rounds", 0),
        ("steps", -1),
        ("tolerance", 1.0),
        ("lr", 0.0),
        ("damping", -0.1),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            AQLM(**{name: value})
    with pytest.raises(ValueError, match="beam_size must be"):
        AQLM(search_options=SearchOptions(beam_size=0))
    with pytest.raises(TypeError, match="steps must be an int"):
        AQLM(steps=1.5)
