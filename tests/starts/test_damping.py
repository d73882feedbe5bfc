"""Damping grows where a Hessian is singular, for every start alike."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from pvopt import Row, Sparse, UniformGrid
from pvopt.starts import AQLM, GPTQ, LNQ, IterativeOBS, OneShotOBS
from pvopt.starts.damping import damped_cholesky

DOUBLE = torch.float64


@pytest.mark.parametrize("start", [GPTQ, AQLM, LNQ, OneShotOBS, IterativeOBS])
def test_inputs_that_depend_on_others_raise_the_damping(start, caplog):
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 8, generator=draws, dtype=DOUBLE)
    weight = torch.randn(4, 8, generator=draws, dtype=DOUBLE)
    scheme = Sparse(density=0.5) if start in (OneShotOBS, IterativeOBS) else UniformGrid(bits=3)
    with caplog.at_level(logging.WARNING, "pvopt.starts.damping"):
        rep = start(damping=0.0).start(weight, scheme, metric=Row(inputs.T @ inputs))
    assert rep.decode().isfinite().all()
    assert "damping 0 does not make it positive definite, 1e-06" in caplog.text


@pytest.mark.parametrize("order", [None, torch.tensor([2, 0, 1])])
def test_the_factor_is_that_of_the_damped_hessian_in_its_order(order, caplog):
    draws = np.random.default_rng(0)
    inputs = draws.normal(size=(9, 3))
    hessian = inputs.T @ inputs
    damped, factor = damped_cholesky(Row(torch.from_numpy(hessian)), 0.1, order)
    expected = hessian + 0.1 * np.trace(hessian) / 3 * np.eye(3)
    np.testing.assert_allclose(damped.hessian.numpy(), expected)
    places = [0, 1, 2] if order is None else order.tolist()
    np.testing.assert_allclose((factor @ factor.T).numpy(), expected[np.ix_(places, places)])
    assert not caplog.records


def test_growth_is_tenfold_and_bounded(caplog):
    nearly = Row(torch.tensor([[1.0, 1.3], [1.3, 1.0]], dtype=DOUBLE))  # eigenvalue -0.3
    damped, _ = damped_cholesky(nearly, 0.05)
    assert float(damped.hessian[0, 0]) == pytest.approx(1.5)
    assert len(caplog.records) == 1
    with pytest.raises(ValueError, match="hessian must be positive semidefinite, as X'X is"):
        damped_cholesky(Row(torch.tensor([[1.0, 3.0], [3.0, 1.0]], dtype=DOUBLE)), 0.05)
    assert len(caplog.records) == 3  # 0.5, and 1 at most
