"""What every start has in common: checks of its arguments, the error measure, the plain fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import (
    AdditiveCodebooks,
    Diagonal,
    FitOptions,
    Row,
    SearchOptions,
    UniformGrid,
    VectorCodebook,
)
from pvopt.starts import AQLM, GPTQ, STARTS, Fit, IterativeOBS, OneShotOBS, parse_start

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
    expected = np.square(outputs - wrong).sum()
    metric = Row(inputs.T @ inputs)
    change = weight.double() - quantized.double()
    assert float(metric.squared_norm(change)) == pytest.approx(expected, rel=1e-9)
    ratio = np.linalg.norm(outputs - wrong) / np.linalg.norm(outputs)
    assert metric.relative_error(weight, quantized) == pytest.approx(ratio, rel=1e-9)
    assert metric.relative_error(weight, weight) == 0
    assert metric.relative_error(torch.zeros(5, 8), weight) == np.inf


def test_fit_is_the_parametrizations_own():
    weight, _ = problem(0)
    own = VectorCodebook(bits=2, group_size=2).fit(
        weight, generator=torch.Generator().manual_seed(0)
    )
    start = Fit().start(weight, VectorCodebook(bits=2, group_size=2))
    assert torch.equal(own.codes["entries"], start.codes["entries"])
    assert torch.equal(own.decode(), start.decode())


@given(SEEDS, st.sampled_from([1e-12, 1.0, 1e12]))
@some
def test_weighted_fit_takes_the_diagonal_in_any_unit(seed, unit):
    weight, inputs = problem(seed)
    hessian = inputs.T @ inputs
    diagonal = (hessian.diagonal() / hessian.diagonal().mean()).float()
    own = UniformGrid(bits=2).fit(weight, metric=Diagonal(diagonal.expand_as(weight)))
    start = Fit(weighted=True).start(weight, UniformGrid(bits=2), metric=Row(unit * hessian))
    torch.testing.assert_close(start.decode(), own.decode())


def test_an_input_that_never_fires_leaves_the_fit_finite():
    weight, inputs = problem(1)
    start = Fit(weighted=True)
    for silent in ([3], list(range(8))):
        inputs[:, silent] = 0
        rep = start.start(weight, UniformGrid(bits=2), metric=Row(inputs.T @ inputs))
        assert rep.decode().isfinite().all()


def test_damped_metrics_can_be_inverted():
    hessian = torch.ones(4, 4, dtype=torch.float64)
    assert torch.linalg.eigvalsh(Row(hessian).damped(0.01).hessian).min() > 0.009
    assert torch.equal(Row(torch.zeros(3, 3)).damped(0.01).hessian, torch.eye(3))
    assert torch.equal(hessian, torch.ones(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("metric", [Row, lambda d: Diagonal(d.diagonal()[None])])
def test_normalized_metrics_have_a_mean_diagonal_of_one(metric):
    some = metric(torch.tensor([[3e30, 1e30], [1e30, 1e30]])).normalized()
    torch.testing.assert_close(some.diagonal((1, 2)), torch.tensor([[1.5, 0.5]]))
    none = metric(torch.zeros(2, 2)).normalized()
    assert torch.equal(none.diagonal((1, 2)), torch.ones(1, 2))


def test_wrong_arguments_are_named():
    weight, inputs = problem(2)
    metric = Row(inputs.T @ inputs)
    start, grid = Fit(weighted=True), UniformGrid(bits=2)
    with pytest.raises(ValueError, match=r"Fit needs the metric of the layer's inputs, Row\(X'X\)"):
        start.start(weight, grid)
    for calibrated in (GPTQ(), AQLM(), OneShotOBS(), IterativeOBS()):
        with pytest.raises(ValueError, match=f"{type(calibrated).__name__} needs the metric"):
            calibrated.start(weight, grid)
    with pytest.raises(TypeError, match=r"GPTQ needs a metric Row in the space.*got Diagonal"):
        GPTQ().start(weight, grid, metric=Diagonal(torch.ones(5, 8)))
    with pytest.raises(ValueError, match=r"shape \[8, 8\] for a weight of shape \[5, 8\]"):
        start.start(weight, grid, metric=Row(torch.eye(5)))
    with pytest.raises(ValueError, match="weight must be finite"):
        start.start(weight / 0, grid, metric=metric)
    with pytest.raises(TypeError, match="weight must be floating"):
        start.start(weight.long(), grid, metric=metric)
    with pytest.raises(TypeError, match="weighted must be a bool"):
        Fit(weighted=1)
    with pytest.raises(ValueError, match="fraction must be at least 0"):
        metric.damped(-1)


def test_a_hessian_is_checked_where_the_metric_is_made():
    _, inputs = problem(2)
    hessian = inputs.T @ inputs
    with pytest.raises(ValueError, match="hessian must be finite"):
        Row(hessian * torch.nan)
    with pytest.raises(ValueError, match="hessian must have a non-negative diagonal"):
        Row(-hessian)
    with pytest.raises(ValueError, match="hessian must be symmetric"):
        Row(hessian + torch.arange(8.0))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (Fit(), "fit"),
        (Fit(weighted=True), "fit:weighted"),
        (GPTQ(), "gptq"),
        (GPTQ(damping=0.02, activation_order=False), "gptq[damping=0.02, activation_order=False]"),
        (
            GPTQ(search_options=SearchOptions(beam_size=16)),
            "gptq[search_options=SearchOptions(beam_size=16, window=None)]",
        ),
        (AQLM(max_rounds=2), "aqlm[max_rounds=2]"),
        (OneShotOBS(), "obs"),
        (IterativeOBS(steps=5, exchanged=0.5), "iterative-obs[steps=5, exchanged=0.5]"),
        (
            Fit(weighted=True, fit_options=FitOptions(iterations=3)),
            "fit:weighted[fit_options=FitOptions(iterations=3, beam_size=None)]",
        ),
    ],
)
def test_names_hold_all_settings(start, name):
    assert start.name == name
    assert parse_start(name) == start
    assert STARTS.from_json(STARTS.to_json(start)) == start


def test_unknown_names_are_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"start 'gptk' is unknown \(did you mean 'gptq'\?\)"):
        parse_start("gptk")
    with pytest.raises(ValueError, match=r"the forms are .*fit.*aqlm.*iterative-obs"):
        parse_start("magic")
    with pytest.raises(ValueError, match="damping must be at least 0"):
        parse_start("gptq[damping=-1]")
    for inside in ("__import__('os')", "SearchOptions(8)", "UniformGrid(bits=2)", "damping=1+1"):
        with pytest.raises(ValueError, match="must be NAME=VALUE"):
            parse_start(f"gptq[search_options={inside}]")


def test_search_effort_is_the_starts_and_reaches_the_search():
    """More combinations kept, lower error; more rounds of the fit, lower error."""
    weight, inputs = problem(3, rows=64, columns=16)
    metric, books = Row(inputs.T @ inputs), AdditiveCodebooks(num_codebooks=3, bits=3, in_group=4)

    def error(start):
        return metric.relative_error(weight, start.start(weight, books, metric=metric).decode())

    for method in (GPTQ, AQLM):
        few, many = (method(search_options=SearchOptions(beam_size=b)) for b in (1, 32))
        assert error(many) < error(few)
    assert error(Fit()) < error(Fit(fit_options=FitOptions(iterations=0, beam_size=1)))
