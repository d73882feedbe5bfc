"""Optimal Brain Surgeon starts: updates against least squares, the order of the methods."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import Sparse, SparseNM, UniformGrid
from pvopt.initialization import (
    Fit,
    IterativeOBS,
    OneShotOBS,
    layer_error,
    refit_support,
)
from pvopt.initialization.pruning import PrunedRows

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None, derandomize=True)
DOUBLE = torch.float64
ROW, PAIRS = Sparse(0.5), SparseNM(2, 4)


def problem(seed: int, rows: int, columns: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random layer and inputs; of correlated columns for odd seeds."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=DOUBLE)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=DOUBLE)
    inputs = inputs @ mix if seed % 2 else inputs
    return torch.randn(rows, columns, generator=generator, dtype=DOUBLE), inputs


def least_squares(weight: np.ndarray, kept: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """The best weights on a support, row by row, from the inputs themselves."""
    result = np.zeros_like(weight)
    for row, (dense, mask) in enumerate(zip(weight, kept, strict=True)):
        if mask.any():
            solved = np.linalg.lstsq(inputs[:, mask], inputs @ dense, rcond=None)[0]
            result[row, mask] = solved
    return result


def error(weight: np.ndarray, other: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return np.square((weight - other) @ inputs.T).sum(1) / 2


@some
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_each_removal_is_the_least_squares_optimum(seed, sizes):
    """Weights, error, saliencies and gains of PrunedRows, each by explicit least squares."""
    weight, inputs = problem(seed, 3, 12, 40)
    dense, x = weight.numpy(), inputs.numpy()
    rows = PrunedRows(weight, torch.linalg.inv(inputs.T @ inputs), sum(sizes))
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        keys = torch.rand(3, 12, generator=generator).masked_fill_(rows.removed, -1.0)
        rows.remove(keys.topk(size, dim=1).indices)
    assert rows.count == sum(sizes)
    kept = ~rows.removed.numpy()
    assert (kept.sum(1) == 12 - sum(sizes)).all()
    best = least_squares(dense, kept, x)
    np.testing.assert_allclose(rows.weight.numpy(), best, atol=1e-7)
    now = error(dense, best, x)
    np.testing.assert_allclose(rows.error.numpy(), now, rtol=1e-7)
    saliency, gain = rows.saliency().numpy(), rows.gain().numpy()
    for row, column in itertools.product(range(3), range(12)):
        other = kept.copy()
        other[row, column] = not other[row, column]
        change = error(dense, least_squares(dense, other, x), x)[row] - now[row]
        if kept[row, column]:
            assert saliency[row, column] == pytest.approx(change, rel=1e-6, abs=1e-9)
        else:
            assert saliency[row, column] == np.inf
            place = rows.order[row].tolist().index(column)
            assert gain[row, place] == pytest.approx(-change, rel=1e-6, abs=1e-9)


def test_restoring_and_removing_again_changes_nothing():
    weight, inputs = problem(3, 4, 10, 30)
    rows = PrunedRows(weight, torch.linalg.inv(inputs.T @ inputs), 5)
    rows.remove(rows.saliency().topk(5, largest=False).indices)
    last = rows.order[:, [1, 4]]
    other = rows.restored(torch.tensor([[1, 4]]).expand(4, 2))
    assert other.count == 3
    assert bool((other.error <= rows.error).all())
    other.remove(last)
    assert torch.equal(other.removed, rows.removed)
    torch.testing.assert_close(other.weight, rows.weight)
    assert not rows.take_better(rows)
    everything = rows.restored(torch.arange(5).expand(4, 5))
    assert torch.equal(everything.weight, weight)
    lower = bool((other.error < rows.error).any())
    assert rows.take_better(other) == lower


@some
@given(seed=SEEDS)
def test_refit_is_least_squares_for_supports_of_any_sizes(seed):
    weight, inputs = problem(seed, 5, 9, 30)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(5, 9, generator=generator) < torch.rand(5, 1, generator=generator)
    kept[0] = False
    found = refit_support(weight, kept, inputs.T @ inputs)
    expected = least_squares(weight.numpy(), kept.numpy(), inputs.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("parametrization", [ROW, Sparse(0.25), Sparse(1.0), PAIRS], ids=str)
@pytest.mark.parametrize("method", [OneShotOBS(0.0), IterativeOBS(0.0)], ids=str)
def test_a_start_is_a_least_squares_point_of_its_support(parametrization, method):
    weight, inputs = problem(1, 6, 16, 40)
    rep = method.start(weight, parametrization, hessian=inputs.T @ inputs)
    parametrization.check_codes(rep.codes)
    expected = least_squares(weight.numpy(), parametrization.support(rep).numpy(), inputs.numpy())
    np.testing.assert_allclose(rep.decode().numpy(), expected, atol=1e-8)


def test_one_shot_keeps_the_largest_saliencies_of_row_group_or_tensor():
    weight, inputs = problem(2, 4, 8, 30)
    hessian = (inputs.T @ inputs).numpy()
    saliency = weight.numpy() ** 2 / np.diag(np.linalg.inv(hessian))
    for parametrization, groups in (
        (ROW, saliency),
        (PAIRS, saliency.reshape(-1, 4)),
        (Sparse(0.25, per="tensor"), saliency.reshape(1, -1)),
    ):
        rep = OneShotOBS(0.0).start(weight, parametrization, hessian=torch.from_numpy(hessian))
        count = parametrization.num_nonzeros((4, 8))
        least = np.sort(groups, axis=1)[:, -count][:, None]
        support = parametrization.support(rep).numpy().reshape(groups.shape)
        assert (support == (groups >= least)).all()


@some
@given(seed=SEEDS)
def test_one_by_one_is_the_greedy_of_least_squares(seed):
    """Without rounds: each removal is the one that raises the error least."""
    weight, inputs = problem(seed, 2, 8, 30)
    dense, x = weight.numpy(), inputs.numpy()
    kept = np.ones((2, 8), dtype=bool)
    for _ in range(4):
        for row in range(2):
            errors = np.full(8, np.inf)
            for column in np.flatnonzero(kept[row]):
                other = kept.copy()
                other[row, column] = False
                errors[column] = error(dense, least_squares(dense, other, x), x)[row]
            kept[row, errors.argmin()] = False
    greedy = error(dense, least_squares(dense, kept, x), x)
    hessian = inputs.T @ inputs
    found = [
        error(dense, m.start(weight, ROW, hessian=hessian).decode().numpy(), x)
        for m in (OneShotOBS(0.0), IterativeOBS(0.0, rounds=0), IterativeOBS(0.0, rounds=3))
    ]
    np.testing.assert_allclose(found[1], np.minimum(greedy, found[0]), rtol=1e-6)
    assert (found[2] <= found[1] * (1 + 1e-9)).all()


@pytest.mark.parametrize("parametrization", [ROW, PAIRS], ids=str)
@pytest.mark.parametrize("tokens", [64, 20])
def test_iterative_is_below_one_shot_is_below_magnitude(parametrization, tokens):
    """In at least 95 % of 200 random layers, and never worse than 1 % otherwise."""
    ratios = []
    for seed in range(200):
        weight, inputs = problem(seed, 8, 32, tokens)
        hessian = inputs.T @ inputs
        errors = [
            float(
                layer_error(
                    weight, method.start(weight, parametrization, hessian=hessian).decode(), hessian
                )
            )
            for method in (Fit(), OneShotOBS(), IterativeOBS(rounds=1))
        ]
        ratios.append([errors[1] / errors[0], errors[2] / errors[1]])
    ratios = np.array(ratios)
    assert ((ratios <= 1 + 1e-9).mean(0) >= 0.95).all()
    assert (ratios <= 1.01).all()
    assert (ratios.mean(0) < 0.9).all()


def test_more_than_one_removal_in_a_step_and_chunks_of_rows(monkeypatch):
    """Coarser steps cost little; rows are independent, so chunks change nothing."""
    weight, inputs = problem(5, 12, 64, 200)
    hessian = inputs.T @ inputs
    fine, coarse = (
        float(layer_error(weight, m.start(weight, ROW, hessian=hessian).decode(), hessian))
        for m in (IterativeOBS(), IterativeOBS(steps=8))
    )
    assert fine <= coarse <= 1.3 * fine
    whole = IterativeOBS().start(weight, ROW, hessian=hessian)
    monkeypatch.setattr("pvopt.initialization.obs._CHUNK_ELEMENTS", 5 * 32 * 64)
    parts = IterativeOBS().start(weight, ROW, hessian=hessian)
    assert torch.equal(parts.codes, whole.codes)
    torch.testing.assert_close(parts.decode(), whole.decode())


def test_single_precision_and_dead_inputs():
    weight, inputs = problem(7, 6, 24, 12)  # singular: fewer tokens than inputs
    hessian = inputs.T @ inputs
    for method in (OneShotOBS(), IterativeOBS()):
        double = method.start(weight, ROW, hessian=hessian)
        single = method.start(weight.float(), ROW, hessian=hessian.float())
        assert single.dtype == torch.float32
        left, right = (float(layer_error(weight, r.decode(), hessian)) for r in (single, double))
        assert left == pytest.approx(right, rel=0.1)
    with pytest.raises(ValueError, match="damping must be larger"):
        OneShotOBS(damping=0.0).start(weight, ROW, hessian=hessian)
    weight, inputs = problem(8, 6, 24, 100)
    inputs[:, 3] = 0.0  # costs nothing to remove
    for method in (OneShotOBS(), IterativeOBS()):
        rep = method.start(weight, ROW, hessian=inputs.T @ inputs)
        assert not bool(ROW.support(rep)[:, 3].any())


def test_a_convolution_is_seen_as_a_matrix():
    weight, inputs = problem(9, 4, 12, 40)
    shaped = weight.view(4, 3, 2, 2)
    for parametrization in (ROW, PAIRS):
        for method in (OneShotOBS(), IterativeOBS()):
            flat = method.start(weight, parametrization, hessian=inputs.T @ inputs)
            rep = method.start(shaped, parametrization, hessian=inputs.T @ inputs)
            assert torch.equal(rep.decode().view(4, 12), flat.decode())


def test_what_cannot_be_started_is_refused_by_name():
    weight, inputs = problem(0, 4, 8, 20)
    hessian = inputs.T @ inputs
    for method in (OneShotOBS(), IterativeOBS()):
        with pytest.raises(TypeError, match=rf"{type(method).__name__}.*sparse.*UniformGrid"):
            method.start(weight, UniformGrid(2), hessian=hessian)
    with pytest.raises(TypeError, match=r"IterativeOBS.*OneShotOBS takes it"):
        IterativeOBS().start(weight, Sparse(0.5, per="tensor"), hessian=hessian)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"damping": -0.1}, ValueError, "damping must be at least 0"),
        ({"damping": float("inf")}, ValueError, "damping"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, TypeError, "steps must be an int, got 2.0"),
        ({"rounds": -1}, ValueError, "rounds must be at least 0, got -1"),
        ({"exchanged": 0.0}, ValueError, r"exchanged must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_settings_cannot_be_made(arguments, kind, words):
    with pytest.raises(kind, match=words):
        IterativeOBS(**arguments)
