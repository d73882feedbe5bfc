"""Scales as codes: decoding, gradients, what moves and what stays, the fit."""

from __future__ import annotations

import itertools

import pytest
import torch
from queries import step
from torch import Tensor

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AllGroups,
    Diagonal,
    FitOptions,
    Nearest,
    QuantizedScales,
    Representation,
    Rotation,
    Row,
    Scheme,
    UniformGrid,
    VectorCodebook,
    row_metric_search,
)

DOUBLE = torch.float64
INNER = [
    VectorCodebook(bits=3, group_size=2, scale_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4, scale_group=8),
    AdditiveCodebooks(num_codebooks=2, bits=9, in_group=2, out_group=2),
    E8P(bits=2, scale_group=16),
    E8P(bits=3, per_tensor=True),
    VectorCodebook(bits=2, group_size=4),
]
each = pytest.mark.parametrize("inner", INNER, ids=str)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def error(rep: Representation, weight: Tensor) -> float:
    return float((rep.decode() - weight).square().sum())


def with_plain_scales(rep: Representation) -> Representation:
    """The inner representation with its scales written out, scale by scale."""
    p = rep.parametrization
    assert isinstance(p, QuantizedScales)
    table = rep.values["scales"]
    scales = torch.stack([table[i] for i in rep.codes["scales"].tolist()])
    own = {name: rep.codes[name].clone() for name in p.inner.streams(rep.shape)}
    shape = p.inner.value_shapes(rep.shape)["scales"]
    values = {**rep.values, "scales": scales.view(shape)}
    return Representation(p.inner, own, values, rep.shape)


@each
def test_it_decodes_as_the_inner_one_with_scales_from_the_table(inner):
    rep = QuantizedScales(inner=inner, bits=2).fit(gaussian(0, 8, 32))
    plain = with_plain_scales(rep)
    assert torch.equal(rep.decode(), plain.decode())
    groups = torch.tensor([3, 0, 5])
    p = rep.parametrization
    torch.testing.assert_close(p.decode_groups(rep, groups), p.decode_groups(rep)[groups])
    assert len(plain.values["scales"].unique()) <= 4


@each
def test_gradients_equal_finite_differences(inner):
    rep, gradient = QuantizedScales(inner=inner, bits=2).fit(gaussian(1, 4, 16)), gaussian(2, 4, 16)
    found = rep.pull([gradient])
    assert list(found) == list(rep.values)
    for name, value in rep.values.items():
        assert found[name].shape == value.shape
        flat = value.view(-1)
        for i in range(0, value.numel(), max(1, value.numel() // 20)):
            start, ends = flat[i].item(), []
            for moved in (start + 1e-3, start - 1e-3):  # exact: decode is linear in each value
                flat[i] = moved
                ends.append(float((gradient * rep.decode()).sum()))
            flat[i] = start
            expected = (ends[0] - ends[1]) / 2e-3
            assert float(found[name].view(-1)[i]) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@each
def test_a_v_step_moves_groups_as_the_inner_one_does_and_leaves_scales(inner):
    rep = QuantizedScales(inner=inner, bits=2).fit(gaussian(3, 8, 32))
    target = gaussian(4, 8, 32)
    plain, before = with_plain_scales(rep), rep.codes["scales"].clone()
    rules = {"rounding": Nearest(), "subspace": AllGroups()}
    moved = step(rep, target, **rules)
    assert moved == step(plain, target, **rules) > 0
    torch.testing.assert_close(error(rep, target), error(plain, target))
    assert torch.equal(rep.codes["scales"], before)
    rep.check_codes()


@each
def test_a_search_in_a_metric_leaves_scales(inner):
    weight, inputs = gaussian(5, 8, 32), gaussian(6, 50, 32)
    rep = QuantizedScales(inner=inner, bits=2).fit(weight)
    before = rep.codes["scales"].clone()

    def layer_error() -> float:
        return float((inputs @ (rep.decode() - weight).T).square().sum())

    start = layer_error()
    assert row_metric_search(rep, weight, Row(inputs.T @ inputs)) > 0
    assert layer_error() < start
    assert torch.equal(rep.codes["scales"], before)


def test_more_bits_come_closer_to_scales_of_full_precision():
    weight = gaussian(7, 32, 64) * gaussian(8, 32, 8).exp().repeat_interleave(8, 1)
    for inner in (VectorCodebook(bits=4, group_size=2, scale_group=8), E8P(bits=2, scale_group=8)):
        plain = error(inner.fit(weight), weight)
        errors = [
            error(QuantizedScales(inner=inner, bits=b).fit(weight), weight) for b in (1, 3, 5, 7)
        ]
        assert all(b < a for a, b in itertools.pairwise(errors))
        assert errors[-1] < 1.01 * plain


def test_a_metric_is_obeyed_and_zero_weights_are_exact():
    weight, metric = gaussian(9, 16, 32), torch.ones(16, 32, dtype=DOUBLE)
    metric[:, ::4] = 100.0
    p = QuantizedScales(inner=VectorCodebook(bits=4, group_size=4, scale_group=8), bits=4)
    squares = [
        (p.fit(weight, metric=m).decode() - weight).square() for m in (None, Diagonal(metric))
    ]
    assert float((squares[1] * metric).sum()) < 0.9 * float((squares[0] * metric).sum())
    for inner in (VectorCodebook(bits=2, group_size=2), E8P(bits=2)):
        rep = QuantizedScales(inner=inner, bits=3).fit(torch.zeros(4, 16))
        assert float(rep.decode().abs().max()) == 0.0


def test_true_bits():
    """2 bits of codes, 6 for each 64 weights, a table of 64 values of 16."""
    p = QuantizedScales(inner=E8P(bits=2, scale_group=64), bits=6)
    expected = 2 + 6 / 64 + 16 * 64 / (128 * 256)
    assert p.bits_per_weight((128, 256)) == pytest.approx(expected, rel=1e-12)
    rotated = Scheme(p, Rotation())
    assert rotated.bits_per_weight((128, 256)) == p.bits_per_weight((128, 256))


def test_codes_that_do_not_exist_are_refused():
    p = QuantizedScales(inner=VectorCodebook(bits=2, group_size=2), bits=1)
    rep = p.fit(gaussian(10, 2, 4))
    rep.check_codes()
    assert not rep.streams["scales"].moves
    entries, scales = torch.tensor([[[3], [1]], [[2], [0]]]), torch.tensor([0, 1])
    rep.check_codes({"entries": entries, "scales": scales})
    with pytest.raises(ValueError, match=r"codes of 'scales' must be in 0\.\.1, got 0\.\.2"):
        rep.check_codes({"entries": entries, "scales": 2 * scales})
    with pytest.raises(ValueError, match=r"codes of 'entries' must be in 0\.\.3, got 1\.\.4"):
        rep.check_codes({"entries": entries + 1, "scales": scales})


def test_a_scale_has_one_code_however_many_groups_share_it():
    rep = QuantizedScales(inner=E8P(bits=2, scale_group=16), bits=2).fit(gaussian(11, 4, 32))
    assert rep.codes["scales"].shape == (8,)
    assert rep.codes["points"].shape == (4, 4, 2)


def test_effort_reaches_the_inner_fit_and_the_last_search():
    weight = gaussian(12, 16, 32)
    p = QuantizedScales(
        inner=AdditiveCodebooks(num_codebooks=3, bits=3, in_group=4, scale_group=8), bits=3
    )
    narrow, wide = (
        error(p.fit(weight, options=FitOptions(beam_size=beam)), weight) for beam in (1, 32)
    )
    assert wide < narrow


@pytest.mark.parametrize(
    ("arguments", "error_kind", "words"),
    [
        (
            (UniformGrid(bits=2),),
            TypeError,
            "inner must be VectorCodebook, AdditiveCodebooks or E8P",
        ),
        ((Scheme(E8P(bits=2), Rotation()),), TypeError, "inner must be"),
        ((E8P(bits=2), 0), ValueError, r"bits must be in 1\.\.8, got 0"),
        ((E8P(bits=2), 2.0), TypeError, "bits must be an int"),
    ],
)
def test_bad_settings_cannot_be_made(arguments, error_kind, words):
    with pytest.raises(error_kind, match=words):
        QuantizedScales(**dict(zip(("inner", "bits"), arguments, strict=False)))
