"""GPTQ and LDLQ: against an independent recursion, and never (much) worse than rounding."""

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
    Query,
    Row,
    SharedValues,
    Ternary,
    UniformGrid,
    VectorCodebook,
)
from pvopt.starts import GPTQ

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=4, deadline=None, derandomize=True)
FORMATS = [
    UniformGrid(bits=2),
    UniformGrid(bits=3, group_size=4),
    UniformGrid(bits=2, group_size=4, symmetric=True),
    UniformGrid(bits=2, group_size=4, integer_zeros=True),
    Ternary(group_size=4),
    SharedValues(num_values=4),
    VectorCodebook(bits=4, group_size=2),
    AdditiveCodebooks(num_codebooks=1, bits=4, in_group=2, out_group=2),
]


def draw(seed: int, rows: int = 6, columns: int = 16, tokens: int = 40, rank: int = 6):
    """Return a float64 weight and correlated inputs with a few high-energy columns."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    mixed = torch.randn(tokens, rank, **options) @ torch.randn(rank, columns, **options)
    inputs = mixed + 0.3 * torch.randn(tokens, columns, **options)
    inputs *= torch.randn(columns, **options).exp()
    return torch.randn(rows, columns, **options), inputs


def output_error(weight, quantized, inputs):
    """The definition, in NumPy: no Hessian."""
    return np.square(inputs.numpy() @ (weight - quantized).double().numpy().T).sum()


def recursion(rep, weight, hessian, order):
    """Round block columns in order, then solve for the others afresh each time (float64)."""
    W, H, layout = weight.numpy(), hessian.numpy(), rep.layout
    n, m, g = W.shape[1], W.shape[0], layout.in_group
    fixed, quantized = [], np.zeros_like(W)
    (stream,) = (stream for stream in rep.streams.values() if stream.moves)
    codes = np.zeros(stream.shape, dtype=int)
    table = torch.arange(stream.num_codes)[:, None]  # every code
    for block in order:
        here = list(range(block * g, (block + 1) * g))
        later = [c for c in range(n) if c not in fixed and c not in here]
        target = W.copy()
        if fixed:
            free = here + later
            error = W[:, fixed] - quantized[:, fixed]
            target[:, free] += error @ H[np.ix_(fixed, free)] @ np.linalg.inv(H[np.ix_(free, free)])
        cost = H[np.ix_(here, here)]
        if later:
            cross = H[np.ix_(here, later)]
            cost = cost - cross @ np.linalg.inv(H[np.ix_(later, later)]) @ cross.T
        for row in range(layout.rows):
            rows = slice(row * layout.out_group, (row + 1) * layout.out_group)
            group = torch.full((len(table),), row * layout.cols + block)
            found = rep.parametrization.decode_groups(rep, group, table).numpy()
            gaps = found.reshape(len(table), layout.out_group, g) - target[rows][:, here]
            best = np.einsum("kri,ij,krj->k", gaps, cost, gaps).argmin()
            codes[row, block] = table[best].numpy()
            quantized[rows, here[0] : here[-1] + 1] = gaps[best] + target[rows][:, here]
        fixed += here
    assert m == W.shape[0]
    return codes


@pytest.mark.parametrize("parametrization", FORMATS, ids=repr)
@pytest.mark.parametrize("activation_order", [False, True])
@given(seed=SEEDS)
@some
def test_codes_are_those_of_a_recursion_that_solves_afresh(parametrization, activation_order, seed):
    weight, inputs = draw(seed)
    row = Row(inputs.T @ inputs)
    method = GPTQ(damping=0.05, activation_order=activation_order)
    rep = method.start(weight, parametrization, metric=row)
    metric = row.damped(0.05).hessian
    order = range(rep.layout.cols)
    if activation_order:
        energy = metric.diagonal().view(rep.layout.cols, -1).sum(1)
        order = energy.argsort(descending=True).tolist()
    codes = rep.codes[next(iter(rep.moving))]
    assert (codes.numpy() == recursion(rep, weight, metric, order)).all()


def nearest(rep, weight):
    """Return the decoded nearest codes, values as they are."""
    found = rep.parametrization.candidates(Query(target=rep.split(weight), rep=rep))
    return rep.merge(rep.parametrization.decode_groups(rep, None, found.codes[:, 0]))


@pytest.mark.parametrize(
    ("parametrization", "columns", "allowance"),
    [
        (UniformGrid(bits=2, group_size=4), 16, 0.6),
        (VectorCodebook(bits=3, group_size=2), 8, 1.5),
    ],
    ids=repr,
)
def test_sixty_draws_against_rounding_to_nearest(parametrization, columns, allowance):
    """At least 95 % of the draws are better than rounding, no one is worse than the allowance.

    A grid is compared with its own fit, a codebook with the nearest codes of the same codebook:
    eight vectors leave later columns little to make up for an error with.
    """
    ratios = []
    for seed in range(60):
        weight, inputs = draw(seed, rows=8, columns=columns)
        start = GPTQ(fit_options=FitOptions(iterations=0))
        rep = start.start(weight, parametrization, metric=Row(inputs.T @ inputs))
        grid = isinstance(parametrization, UniformGrid)
        rounded = parametrization.fit(weight).decode() if grid else nearest(rep, weight)
        errors = [output_error(weight, q, inputs) for q in (rep.decode(), rounded)]
        ratios.append(errors[0] / errors[1])
    assert np.mean(np.array(ratios) <= 1) >= 0.95
    assert max(ratios) <= allowance
    assert np.median(ratios) < 0.6


@pytest.mark.parametrize("parametrization", FORMATS, ids=repr)
@given(seed=SEEDS)
@some
def test_for_equal_uncorrelated_inputs_it_rounds_to_nearest(parametrization, seed):
    weight, _ = draw(seed)
    rep = GPTQ().start(weight, parametrization, metric=Row(torch.eye(16)))
    torch.testing.assert_close(nearest(rep, weight), rep.decode())
    if parametrization.value_columns((6, 16)) is not None:
        torch.testing.assert_close(rep.decode(), parametrization.fit(weight).decode())


@given(SEEDS, st.sampled_from([1e-9, 1e9]))
@some
def test_any_multiple_of_the_hessian_will_do(seed, unit):
    weight, inputs = draw(seed)
    hessian, grid = inputs.T @ inputs, UniformGrid(bits=3, group_size=8)
    expected = GPTQ().start(weight, grid, metric=Row(hessian))
    rep = GPTQ().start(weight, grid, metric=Row(unit * hessian))
    torch.testing.assert_close(rep.decode(), expected.decode())


@pytest.mark.parametrize("flag", ["symmetric", "integer_zeros"])
def test_values_count_what_is_left_of_an_error_once_later_columns_made_up_for_it(flag):
    weight, inputs = draw(2)
    metric, grid = Row(inputs.T @ inputs), UniformGrid(bits=2, group_size=4, **{flag: True})
    rep = GPTQ(activation_order=False).start(weight, grid, metric=metric)
    hessian = metric.damped(0.01).hessian.numpy()
    left = [1 / np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(4)]
    expected = grid.fit(weight[:, :4], metric=Diagonal(torch.tensor([left])))
    torch.testing.assert_close(rep.values["scales"][:, :1], expected.values["scales"])
    if flag == "integer_zeros":
        assert torch.equal(rep.codes["zeros"][:, :1], expected.codes["zeros"])


def test_batches_of_columns_do_not_matter(monkeypatch):
    weight, inputs = draw(0, columns=24)
    metric, grid = Row(inputs.T @ inputs), UniformGrid(bits=2, group_size=4)
    expected = GPTQ().start(weight, grid, metric=metric)
    monkeypatch.setattr("pvopt.starts.gptq._BATCH", 5)
    rep = GPTQ().start(weight, grid, metric=metric)
    torch.testing.assert_close(rep.decode(), expected.decode())
    assert torch.equal(rep.codes["levels"], expected.codes["levels"])


def test_silent_inputs_and_few_tokens_are_no_obstacle():
    weight, inputs = draw(1, tokens=3)
    inputs[:, [2, 5]] = 0
    for hessian in (inputs.T @ inputs, torch.zeros(16, 16)):
        for parametrization in FORMATS:
            rep = GPTQ().start(weight, parametrization, metric=Row(hessian))
            assert rep.decode().isfinite().all()


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="damping must be at least 0 and finite"):
        GPTQ(damping=-1)
    with pytest.raises(TypeError, match="activation_order must be a bool"):
        GPTQ(activation_order="yes")
