"""GPTQ and LDLQ: against an independent recursion, and never (much) worse than rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pvopt
from pvopt import AdditiveCodebooks, SharedValues, Ternary, UniformGrid, VectorCodebook
from pvopt.starts import GPTQ, damped

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=4, deadline=None, derandomize=True)
FORMATS = [
    UniformGrid(bits=2),
    UniformGrid(bits=3, group_size=4),
    UniformGrid(bits=2, group_size=4, symmetric=True),
    Ternary(group_size=4),
    SharedValues(num_values=4),
    VectorCodebook(bits=4, group_size=2),
    AdditiveCodebooks(num_codebooks=1, bits=4, in_group=2, out_group=2),
]


def draw(seed: int, rows: int = 6, columns: int = 16, tokens: int = 40, rank: int = 6):
    """Return a float64 weight and correlated inputs with a few loud columns."""
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
    codes = np.zeros(tuple(rep.codes.shape), dtype=int)
    table = torch.arange(rep.parametrization.num_codes)[:, None]  # every code
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
    hessian = inputs.T @ inputs
    method = GPTQ(damping=0.05, activation_order=activation_order)
    rep = method.start(weight, parametrization, hessian=hessian)
    metric = damped(hessian, 0.05)
    order = range(rep.layout.cols)
    if activation_order:
        loud = metric.diagonal().view(rep.layout.cols, -1).sum(1)
        order = loud.argsort(descending=True).tolist()
    assert (rep.codes.numpy() == recursion(rep, weight, metric, order)).all()


def nearest(rep, weight):
    """Return the decoded nearest codes, values as they are."""
    found = rep.parametrization.candidates(rep.parametrization.split(weight), rep, None)
    decoded = rep.parametrization.decode_groups(rep, None, found.codes[:, 0])
    return rep.parametrization.merge(decoded, rep.shape)


@pytest.mark.parametrize(
    ("parametrization", "allowance"),
    [
        (UniformGrid(bits=2, group_size=4), 1.05),
        (VectorCodebook(bits=3, group_size=2, refine_iterations=0), 1.5),
    ],
    ids=repr,
)
def test_two_hundred_draws_against_rounding_to_nearest(parametrization, allowance):
    """At least 95 % of the draws are better than rounding, no one is worse than the allowance.

    A grid is compared with its own fit, a codebook with the nearest codes of the same codebook:
    eight vectors leave later columns little to make up for an error with.
    """
    ratios = []
    for seed in range(200):
        weight, inputs = draw(seed, rows=8, columns=8)
        rep = GPTQ().start(weight, parametrization, hessian=inputs.T @ inputs)
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
    rep = GPTQ().start(weight, parametrization, hessian=torch.eye(16))
    nearest = parametrization.candidates(parametrization.split(weight), rep, None)
    torch.testing.assert_close(parametrization.decode_groups(rep, None, nearest.codes[:, 0]),
                               parametrization.decode_groups(rep))  # fmt: skip
    if parametrization.value_columns((6, 16)) is not None:
        torch.testing.assert_close(rep.decode(), parametrization.fit(weight).decode())


@given(SEEDS, st.sampled_from([1e-9, 1e9]))
@some
def test_any_multiple_of_the_hessian_will_do(seed, unit):
    weight, inputs = draw(seed)
    hessian = inputs.T @ inputs
    expected = GPTQ().start(weight, UniformGrid(bits=3, group_size=8), hessian=hessian)
    rep = GPTQ().start(weight, UniformGrid(bits=3, group_size=8), hessian=unit * hessian)
    torch.testing.assert_close(rep.decode(), expected.decode())


def test_batches_of_columns_do_not_matter(monkeypatch):
    weight, inputs = draw(0, columns=24)
    hessian = inputs.T @ inputs
    expected = GPTQ().start(weight, UniformGrid(bits=2, group_size=4), hessian=hessian)
    monkeypatch.setattr("pvopt.starts.gptq._BATCH", 5)
    rep = GPTQ().start(weight, UniformGrid(bits=2, group_size=4), hessian=hessian)
    torch.testing.assert_close(rep.decode(), expected.decode())
    assert torch.equal(rep.codes, expected.codes)


def test_silent_inputs_and_few_tokens_are_no_obstacle():
    weight, inputs = draw(1, tokens=3)
    inputs[:, [2, 5]] = 0
    for hessian in (inputs.T @ inputs, torch.zeros(16, 16)):
        for parametrization in FORMATS:
            rep = GPTQ().start(weight, parametrization, hessian=hessian)
            assert rep.decode().isfinite().all()


@dataclass(frozen=True)
class Rotated(UniformGrid):
    """A grid behind a fixed rotation of the inputs: the space of the groups is another one."""

    def rotation(self, columns):
        generator = torch.Generator().manual_seed(7)
        gaussian = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(gaussian).Q

    def split(self, weight):
        return self.layout(tuple(weight.shape)).split(weight @ self.rotation(weight.shape[1]))

    def merge(self, groups, shape):
        return self.layout(shape).merge(groups) @ self.rotation(shape[1]).T

    def split_hessian(self, hessian, shape):
        Q = self.rotation(shape[1])
        return Q.T @ hessian @ Q

    def fit(self, weight, *, metric=None, generator=None):
        assert metric is None
        rotated = self.layout(tuple(weight.shape)).merge(self.split(weight))
        inner = UniformGrid(bits=self.bits, group_size=self.group_size).fit(rotated)
        return pvopt.Representation(self, inner.codes, inner.values, tuple(weight.shape))


def test_rounding_happens_in_the_space_of_the_groups():
    ratios = []
    for seed in range(20):
        weight, inputs = draw(seed)
        rep = GPTQ().start(weight, Rotated(2), hessian=inputs.T @ inputs)
        plain = Rotated(2).fit(weight)
        assert torch.equal(rep.values["scales"], plain.values["scales"])
        errors = [output_error(weight, r.decode(), inputs) for r in (rep, plain)]
        ratios.append(errors[0] / errors[1])
    assert np.median(ratios) < 0.6
    assert max(ratios) < 1


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="damping must be at least 0 and finite"):
        GPTQ(damping=-1)
    with pytest.raises(TypeError, match="activation_order must be a bool"):
        GPTQ(activation_order="yes")
    weight, inputs = draw(0, tokens=3)
    inputs[:, 4] = inputs[:, 3]
    with pytest.raises(ValueError, match="damping must be positive: the hessian is singular"):
        GPTQ(damping=0.0).start(weight, UniformGrid(bits=2), hessian=torch.ones(16, 16))
