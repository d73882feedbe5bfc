"""Sparse weights with quantized nonzeros: the search, the file, the gradients, the starts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import candidates

from pvopt import (
    E8P,
    AdditiveCodebooks,
    Binary,
    Parametrization,
    QuantizedNonzeros,
    QuantizedScales,
    Representation,
    Rotation,
    Row,
    Scheme,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
    VectorCodebook,
    row_metric_search,
)
from pvopt.parametrizations.choices import best_sums

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None, derandomize=True)
DOUBLE = torch.float64
KINDS = [
    QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=2, group_size=8)
    ),
    QuantizedNonzeros(
        support=SparseNM(nonzeros=1, group_size=4), inner=VectorCodebook(bits=3, group_size=2)
    ),
    QuantizedNonzeros(
        support=Sparse(density=0.5), inner=AdditiveCodebooks(num_codebooks=2, bits=2, in_group=4)
    ),
    QuantizedNonzeros(support=Sparse(density=0.25), inner=Ternary(group_size=4)),
    QuantizedNonzeros(support=Sparse(density=0.5, per="tensor"), inner=Binary()),
    QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4),
        inner=QuantizedScales(inner=E8P(bits=2, scale_group=8), bits=2),
    ),
]
each = pytest.mark.parametrize("parametrization", KINDS, ids=str)


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@some
@given(seed=SEEDS, places=st.integers(1, 4), count=st.integers(1, 3), k=st.integers(1, 30))
def test_best_sums_are_the_k_best_of_all(seed, places, count, k):
    errors = gaussian(seed, 2, places, count).square().sort(-1).values
    every = np.array(list(itertools.product(range(count), repeat=places)))
    totals = errors.numpy()[:, np.arange(places), every].sum(-1)  # [2, choices]
    wanted = np.sort(totals, 1)[:, :k]
    found = best_sums(errors, k)
    assert found.shape == (2, min(k, len(every)), places)
    sums = errors.gather(2, found.transpose(1, 2)).sum(1)
    np.testing.assert_allclose(sums.numpy(), wanted, atol=1e-12)
    for choices in found.tolist():
        assert len({tuple(choice) for choice in choices}) == len(choices)


def test_best_sums_leave_out_what_does_not_exist():
    errors = torch.tensor([[[0.0, 1.0, torch.inf], [0.0, torch.inf, torch.inf]]])
    assert best_sums(errors, 9).tolist() == [[[0, 0], [1, 0]]]


@each
def test_the_nonzeros_are_what_the_inner_parametrization_makes_of_them(parametrization):
    weight = gaussian(0, 8, 32)
    rep = parametrization.fit(weight)
    support = parametrization.support.support(parametrization.support.fit(weight))
    nonzeros = weight[support].view(parametrization.nonzero_shape((8, 32)))
    inner = parametrization.inner.fit(nonzeros).decode()
    decoded = rep.decode()
    assert torch.equal(decoded[support], inner.flatten())
    assert bool((decoded[~support] == 0).all())


@each
@some
@given(seed=SEEDS, k=st.integers(1, 5), with_metric=st.booleans())
def test_candidates_are_distinct_ordered_and_measured(parametrization, seed, k, with_metric):
    rep = parametrization.fit(gaussian(seed, 8, 32))
    target = rep.split(gaussian(seed + 1, 8, 32))
    metric = gaussian(seed + 2, *target.shape).square() if with_metric else None
    before = parametrization.decode_groups(rep) - target
    current = (before.square() * (1.0 if metric is None else metric)).sum(1)
    found = candidates(rep, target, None, k, metric=metric)
    assert bool((found.errors.diff(dim=1) >= 0).all())
    for slot in range(k):
        codes = found.codes[:, slot]
        other = rep.clone()
        other.write_codes_(None, codes)
        other.check_codes()
        difference = parametrization.decode_groups(rep, None, codes) - target
        squares = difference.square() * (1.0 if metric is None else metric)
        torch.testing.assert_close(found.errors[:, slot], squares.sum(1))
    for codes in found.codes.tolist():
        assert len({tuple(c) for c in codes}) == k
    if k == 1:
        assert bool((found.errors[:, 0] <= current + 1e-12).all())


@each
@some
@given(seed=SEEDS)
def test_some_groups_are_searched_as_all_are(parametrization, seed):
    rep = parametrization.fit(gaussian(seed, 8, 32))
    target = rep.split(gaussian(seed + 1, 8, 32))
    every = candidates(rep, target, None, 2)
    order = torch.Generator().manual_seed(seed)
    groups = torch.randperm(len(target), generator=order)[: len(target) // 2 + 1]
    part = candidates(rep, target[groups], groups, 2)
    torch.testing.assert_close(part.errors, every.errors[groups])
    assert torch.equal(part.codes, every.codes[groups])


@each
def test_pulled_gradients_are_those_of_autograd(parametrization):
    rep = parametrization.fit(gaussian(3, 8, 32))
    slope = gaussian(4, 8, 32)
    wanted = Parametrization.pull(parametrization, rep, [slope])
    found = parametrization.pull(rep, [slope])
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient)


@each
def test_the_bits_are_those_of_both(parametrization):
    shape = (8, 32)
    inner = parametrization.nonzero_shape(shape)
    values = parametrization.inner.bits_per_weight(inner) * inner[0] * inner[1]
    support = parametrization.support.streams(shape)["support"].stored_bits
    assert parametrization.bits_per_weight(shape) * 256 == pytest.approx(support + values)


def test_inner_codes_of_several_streams():
    """Codes of a stream lie together, and so do those of the inner groups of a group."""

    @dataclass(frozen=True, kw_only=True)
    class TwoStreams(AdditiveCodebooks):
        def streams(self, shape):
            return {
                "b": super().streams(shape)["entries"],
                "a": replace(super().streams(shape)["entries"], shape=(*self._size(shape), 1)),
            }

        def _size(self, shape):
            layout = self.layout(shape)
            return layout.rows, layout.cols

        def _entries(self, codes):
            return codes[..., : self.num_codebooks]

        def decode_groups(self, rep, groups=None, codes=None):
            codes = rep.group_codes(groups) if codes is None else codes
            signs = 1 - 2 * (codes[:, -1:] % 2)
            return signs * super().decode_groups(rep, groups, self._entries(codes))

        def search(self, query):
            """The entries as they are, the better signs first."""
            codes = query.current()[:, None].repeat(1, 4, 1)
            codes[..., -1] = torch.arange(4)
            order = self.errors(query, codes).argsort(dim=1, stable=True)[:, : query.count]
            return codes.gather(1, order[..., None].expand(-1, -1, codes.shape[2]))

        def fit(self, weight, **how):
            rep = AdditiveCodebooks.fit(AdditiveCodebooks(**vars(self)), weight, **how)
            stream = self.streams(rep.shape)
            codes = {"b": rep.codes["entries"], "a": stream["a"].zeros()}
            return Representation(self, codes, rep.values, rep.shape)

    p = QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4),
        inner=TwoStreams(num_codebooks=2, bits=2, in_group=1),
    )
    rep = p.fit(gaussian(12, 4, 16))
    assert rep.moving == {"support": 1, "b": 4, "a": 2}
    codes = torch.arange(rep.codes["a"].numel()).view(rep.codes["a"].shape) % 4
    rep.codes["a"].copy_(codes)
    nonzeros = p.inner.decode_groups(p._inner(rep)).flatten()
    decoded = rep.decode()
    assert torch.equal(decoded[decoded != 0], nonzeros)
    target = gaussian(13, 16, 4)
    for count in (1, 3):
        found = candidates(rep, target, None, count)
        other = rep.clone()
        other.write_codes_(None, found.codes[:, 0])
        errors = (p.decode_groups(other) - target).square().sum(1)
        torch.testing.assert_close(errors, found.errors[:, 0])
        # no worse than the best signs on the support as it is
        sizes = p.decode_groups(rep).abs()
        signs = (target.abs() - sizes).square().sum(1)
        assert bool((found.errors[:, 0] <= signs + 1e-12).all())


def test_a_search_in_the_metric_of_the_inputs_lowers_the_layer_error():
    weight, inputs = gaussian(5, 16, 32), gaussian(6, 64, 32) @ gaussian(7, 32, 32)
    metric = Row(inputs.T @ inputs)
    parametrization = QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=2, group_size=8)
    )
    rep = parametrization.fit(weight)
    start = metric.squared_norm(rep.decode() - weight)
    assert row_metric_search(rep, weight, metric) > 0
    # Measured: 0.56; no search leaves 1.
    assert metric.squared_norm(rep.decode() - weight) < 0.7 * start


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((Binary(), Binary()), TypeError, "support must be Sparse or SparseNM, got Binary"),
        (
            (SparseNM(nonzeros=2, group_size=4), Sparse(density=0.5)),
            TypeError,
            "inner must be.*got Sparse",
        ),
        (
            (SparseNM(nonzeros=2, group_size=4), Scheme(Binary(), Rotation())),
            TypeError,
            "inner must be.*got Scheme",
        ),
        ((SparseNM(nonzeros=2, group_size=4), 2), TypeError, "inner must be.*got int"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        QuantizedNonzeros(support=arguments[0], inner=arguments[1])


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"group_size=8 does not divide the 12 columns"):
        QuantizedNonzeros(
            support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=2, group_size=8)
        ).fit(torch.ones(2, 24))
    with pytest.raises(ValueError, match="groups inside of rows, got 2 rows"):
        QuantizedNonzeros(
            support=SparseNM(nonzeros=2, group_size=4),
            inner=AdditiveCodebooks(num_codebooks=1, bits=2, in_group=2, out_group=2),
        ).fit(torch.ones(2, 8))


def test_a_support_of_another_size_is_refused():
    weight, support = gaussian(1, 2, 8), torch.zeros(2, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="support must have 2 entries"):
        QuantizedNonzeros(support=SparseNM(nonzeros=2, group_size=4), inner=Binary()).represent(
            weight, support
        )
