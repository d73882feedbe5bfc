"""What every start has in common: checks of its arguments, the error measure, the plain fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import UniformGrid, VectorCodebook
from pvopt.starts import Fit, damped, layer_error, relative_layer_error

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None, derandomize=True)


def problem(seed: int, rows: int = 5, columns: int = 8, tokens: int = 30):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator), inputs


@given(SEEDS)
@some
def test_layer_error_is_that_of_the_outputs(seed):
    weight, inputs = problem(seed)
    quantized = UniformGrid(bits=2).fit(weight).decode()
    outputs = inputs.numpy() @ weight.double().numpy().T
    wrong = inputs.numpy() @ quantized.double().numpy().T
    hessian = inputs.T @ inputs
    expected = np.square(outputs - wrong).sum()
    assert float(layer_error(weight, quantized, hessian)) == pytest.approx(expected, rel=1e-9)
    ratio = np.linalg.norm(outputs - wrong) / np.linalg.norm(outputs)
    assert relative_layer_error(weight, quantized, hessian) == pytest.approx(ratio, rel=1e-9)


def test_fit_is_the_parametrizations_own():
    weight, _ = problem(0)
    own = VectorCodebook(bits=2, group_size=2).fit(
        weight, generator=torch.Generator().manual_seed(0)
    )
    start = Fit().start(weight, VectorCodebook(bits=2, group_size=2))
    assert torch.equal(own.codes, start.codes)
    assert torch.equal(own.decode(), start.decode())


@given(SEEDS, st.sampled_from([1e-12, 1.0, 1e12]))
@some
def test_weighted_fit_takes_the_diagonal_in_any_unit(seed, unit):
    weight, inputs = problem(seed)
    hessian = inputs.T @ inputs
    diagonal = (hessian.diagonal() / hessian.diagonal().mean()).float()
    own = UniformGrid(bits=2).fit(weight, metric=diagonal.expand_as(weight))
    start = Fit(weighted=True).start(weight, UniformGrid(bits=2), hessian=unit * hessian)
    torch.testing.assert_close(start.decode(), own.decode())


def test_an_input_that_never_fires_leaves_the_fit_finite():
    weight, inputs = problem(1)
    start = Fit(weighted=True)
    for silent in ([3], list(range(8))):
        inputs[:, silent] = 0
        rep = start.start(weight, UniformGrid(bits=2), hessian=inputs.T @ inputs)
        assert rep.decode().isfinite().all()


def test_damped_matrices_can_be_inverted():
    hessian = torch.ones(4, 4, dtype=torch.float64)
    assert torch.linalg.eigvalsh(damped(hessian, 0.01)).min() > 0.009
    assert torch.equal(damped(torch.zeros(3, 3), 0.01), torch.eye(3))
    assert torch.equal(hessian, torch.ones(4, 4, dtype=torch.float64))


def test_wrong_arguments_are_named():
    weight, inputs = problem(2)
    hessian = inputs.T @ inputs
    start, grid = Fit(weighted=True), UniformGrid(bits=2)
    with pytest.raises(ValueError, match=r"Fit needs the hessian X'X"):
        start.start(weight, grid)
    with pytest.raises(ValueError, match=r"shape \[8, 8\] for a weight of shape \[5, 8\]"):
        start.start(weight, grid, hessian=torch.eye(5))
    with pytest.raises(ValueError, match="hessian must be finite"):
        start.start(weight, grid, hessian=hessian * torch.nan)
    with pytest.raises(ValueError, match="hessian must have a non-negative diagonal"):
        start.start(weight, grid, hessian=-hessian)
    with pytest.raises(ValueError, match="hessian must be symmetric"):
        start.start(weight, grid, hessian=hessian + torch.arange(8.0))
    with pytest.raises(ValueError, match="weight must be finite"):
        start.start(weight / 0, grid, hessian=hessian)
    with pytest.raises(TypeError, match="weight must be floating"):
        start.start(weight.long(), grid, hessian=hessian)
    with pytest.raises(TypeError, match="weighted must be a bool"):
        Fit(weighted=1)
    with pytest.raises(ValueError, match="fraction must be at least 0"):
        damped(hessian, -1)
