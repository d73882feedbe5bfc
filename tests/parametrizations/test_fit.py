"""Fitting: exact where it can be, never worse than the obvious start, clear about bad input."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import candidates, step
from torch import Tensor

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AllGroups,
    Binary,
    Diagonal,
    FitOptions,
    Nearest,
    Parametrization,
    QuantizedNonzeros,
    Representation,
    SearchOptions,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    Trellis,
    UniformGrid,
    VectorCodebook,
)
from pvopt.parametrizations.sparse_support import SparseSupport

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=15, deadline=None, derandomize=True)
PARAMETRIZATIONS = [
    SharedValues(num_values=4),
    UniformGrid(bits=2, group_size=4),
    UniformGrid(bits=3),
    UniformGrid(bits=2, group_size=4, symmetric=True),
    UniformGrid(bits=1, symmetric=True),
    UniformGrid(bits=2, group_size=4, integer_zeros=True),
    Binary(group_size=4),
    Ternary(),
    Sparse(density=0.5),
    Sparse(density=0.5, per="tensor"),
    SparseNM(nonzeros=2, group_size=4),
    QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=2, group_size=4)
    ),
    QuantizedNonzeros(support=Sparse(density=0.5), inner=VectorCodebook(bits=3, group_size=2)),
    VectorCodebook(bits=3, group_size=2),
    VectorCodebook(bits=3, group_size=2, scale_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=3, in_group=2, out_group=2, scale_group=4),
    E8P(bits=2),
    E8P(bits=3, scale_group=8),
    E8P(bits=4, per_tensor=True),
    Trellis(bits=2, state_bits=6, out_group=2, in_group=4),
    Trellis(bits=2, state_bits=4, code="table", out_group=2, in_group=4, scale_group=8),
]
each = pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=str)


def gaussian(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def error(rep: Representation, weight: Tensor, metric: Tensor | None = None) -> float:
    squares = (rep.decode().double() - weight.double()).square()
    return float((squares if metric is None else squares * metric.double()).sum())


def check_valid(rep: Representation) -> None:
    assert bool(rep.decode().isfinite().all())
    rep.check_codes()


@each
@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_values_have_at_least_single_precision(parametrization, dtype, values):
    rep = parametrization.fit(gaussian(0, 8, 8, dtype=dtype))
    assert rep.dtype == values
    check_valid(rep)


@each
@some
@given(seed=SEEDS)
def test_a_fitted_weight_is_a_fixed_point_of_the_v_step(parametrization, seed):
    rep = parametrization.fit(gaussian(seed, 4, 8, dtype=torch.float64))
    check_valid(rep)
    codes = rep.group_codes().clone()
    assert step(rep, rep.decode(), rounding=Nearest(), subspace=AllGroups()) == 0
    assert torch.equal(rep.group_codes(), codes)
    found = candidates(rep, rep.split(rep.decode()))
    assert torch.equal(found.codes[:, 0], codes.long())


@each
def test_the_fit_explains_most_of_a_gaussian_weight(parametrization):
    weight = gaussian(1, 16, 16, dtype=torch.float64)
    relative = error(parametrization.fit(weight), weight) / float(weight.square().sum())
    # the distortion of the one-bit grid {-s, 0}, which sees one sign only, is the largest
    one_bit = [s.num_codes for s in parametrization.streams((16, 16)).values()] == [2]
    assert relative < (0.8 if one_bit else 0.4)


@each
def test_fit_is_reproducible_and_leaves_its_input_and_the_global_generator_alone(parametrization):
    weight = torch.nn.Parameter(gaussian(2, 8, 8))
    before, state = weight.detach().clone(), torch.get_rng_state()
    one, two = parametrization.fit(weight), parametrization.fit(weight)
    seeded = [
        parametrization.fit(weight, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(weight, before)
    for left, right in ((one, two), (seeded[0], seeded[1])):
        for (name, a), (_, b) in zip(left.tensors(), right.tensors(), strict=True):
            assert torch.equal(a, b), name
            assert not a.requires_grad
            assert a.data_ptr() != weight.data_ptr()


@each
def test_a_non_contiguous_weight_is_fitted_alike(parametrization):
    weight = gaussian(3, 8, 8)
    left = parametrization.fit(weight)
    right = parametrization.fit(weight.t().contiguous().t())
    assert torch.equal(left.decode(), right.decode())


@each
def test_a_constant_metric_changes_nothing(parametrization):
    weight = gaussian(4, 8, 8, dtype=torch.float64)
    plain = parametrization.fit(weight)
    unit = parametrization.fit(weight, metric=Diagonal(torch.ones_like(weight)))
    torch.testing.assert_close(unit.decode(), plain.decode())


@each
def test_a_metric_lowers_the_error_it_measures(parametrization):
    """Over a few weights: a single k-means may end in a worse local minimum."""
    # a hundred times more important in every fourth column, and in every fourth row
    metric = torch.ones(16, 16, dtype=torch.float64)
    metric[:, ::4] *= 100.0
    metric[::4] *= 100.0
    plain = fitted = 0.0
    for seed in range(4):
        weight = gaussian(seed, 16, 16, dtype=torch.float64)
        plain += error(parametrization.fit(weight), weight, metric)
        fitted += error(parametrization.fit(weight, metric=Diagonal(metric)), weight, metric)
    assert fitted < 0.95 * plain


@each
def test_unimportant_weights_are_allowed(parametrization):
    weight = gaussian(6, 8, 8)
    for metric in (torch.zeros(8, 8), torch.eye(8)):
        check_valid(parametrization.fit(weight, metric=Diagonal(metric)))


@each
def test_zero_rows(parametrization):
    weight = gaussian(7, 8, 8)
    weight[2:4] = 0.0
    rep = parametrization.fit(weight)
    check_valid(rep)
    worst = float(rep.decode()[2:4].abs().max())
    if isinstance(parametrization, UniformGrid | Binary | Ternary | SparseSupport):
        assert worst == 0.0  # a scale group of zeros is exact
    else:
        assert worst < 0.3


@each
def test_a_zero_weight_is_exact(parametrization):
    rep = parametrization.fit(torch.zeros(8, 8))
    check_valid(rep)
    assert float(rep.decode().abs().max()) == 0.0


@each
@pytest.mark.parametrize("constant", [0.3, -0.02, 1e-4, 40.0])
def test_a_constant_weight_is_exact_up_to_rounding(parametrization, constant):
    if parametrization == UniformGrid(bits=1, symmetric=True) and constant > 0:
        pytest.skip("the one-bit symmetric grid {-s, 0} has no level above zero")
    if isinstance(parametrization, SparseSupport | QuantizedNonzeros):
        pytest.skip("a sparse weight is not constant")
    if isinstance(parametrization, Trellis) and parametrization.code != "table":
        pytest.skip("neighbours in a trellis of fixed weights differ")
    rep = parametrization.fit(torch.full((8, 8), constant))
    check_valid(rep)
    torch.testing.assert_close(rep.decode(), torch.full((8, 8), constant), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "parametrization",
    [
        SharedValues(num_values=3),
        UniformGrid(bits=2),
        VectorCodebook(bits=2, group_size=1),
        AdditiveCodebooks(num_codebooks=2, bits=2, in_group=1, out_group=2),
    ],
    ids=str,
)
def test_a_single_column(parametrization):
    weight = gaussian(8, 6, 1)
    rep = parametrization.fit(weight)
    check_valid(rep)
    assert rep.decode().shape == (6, 1)
    if isinstance(parametrization, UniformGrid):  # one weight per scale and zero point
        torch.testing.assert_close(rep.decode(), weight, rtol=1e-4, atol=1e-6)


@each
@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_the_fit_scales_with_the_weight(parametrization, size):
    weight = gaussian(9, 8, 8)
    unit, scaled = parametrization.fit(weight), parametrization.fit(size * weight)
    ratio = error(scaled, size * weight) / error(unit, weight) / size**2
    assert 0.5 < ratio < 2.0


@some
@given(seed=SEEDS, distinct=st.integers(1, 8), skew=st.booleans())
def test_shared_values_recover_a_weight_of_few_distinct_entries(seed, distinct, skew):
    """Exact (to rounding) if there are at most c distinct entries, however rare some are."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(distinct, generator=generator, dtype=torch.float64)
    codes = torch.randint(distinct, (40, 40), generator=generator)
    if skew:  # all but a few entries are equal
        rare = torch.rand(40, 40, generator=generator) < 0.01
        codes = torch.where(rare, codes, 0)
        codes.view(-1)[:distinct] = torch.arange(distinct)
    weight = table[codes]
    rep = SharedValues(num_values=8).fit(weight)
    torch.testing.assert_close(rep.decode(), weight, rtol=1e-12, atol=1e-12)


@some
@given(seed=SEEDS, bits=st.integers(1, 4), symmetric=st.booleans())
def test_uniform_grid_is_never_worse_than_round_to_nearest(seed, bits, symmetric):
    weight = gaussian(seed, 4, 8, dtype=torch.float64)
    top = 2**bits - 1
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = torch.maximum(
            -weight.amin(1, True) / middle, weight.amax(1, True) / max(top - middle, 1)
        )
        codes = (weight / scale + middle).round().clamp(0, top)
        nearest = scale * (codes - middle)
    else:
        low = weight.amin(1, True)
        scale = (weight.amax(1, True) - low) / top
        nearest = low + scale * ((weight - low) / scale).round()
    rep = UniformGrid(bits=bits, symmetric=symmetric).fit(weight)
    assert error(rep, weight) <= float((nearest - weight).square().sum()) * (1 + 1e-9)


@some
@given(seed=SEEDS, symmetric=st.booleans())
def test_uniform_grid_recovers_weights_on_a_grid(seed, symmetric):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(4, (4, 8), generator=generator)
    codes[:, :4] = torch.arange(4)
    scale = torch.rand(4, 1, generator=generator, dtype=torch.float64) + 0.1
    zero = 2.0 if symmetric else 3 * torch.rand(4, 1, generator=generator, dtype=torch.float64)
    weight = scale * (codes - zero)
    rep = UniformGrid(bits=2, symmetric=symmetric).fit(weight)
    torch.testing.assert_close(rep.decode(), weight, rtol=1e-10, atol=1e-10)


def test_codebooks_recover_their_own_entries():
    generator = torch.Generator().manual_seed(0)
    book = torch.nn.functional.normalize(torch.randn(4, 2, generator=generator), dim=1)
    codes = torch.randint(4, (6, 8), generator=generator)
    scales = torch.rand(6, 1, 1, generator=generator) + 0.5
    weight = (scales * book[codes]).flatten(1)
    for p in (
        VectorCodebook(bits=2, group_size=2),
        AdditiveCodebooks(num_codebooks=1, bits=2, in_group=2),
    ):
        torch.testing.assert_close(p.fit(weight).decode(), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "parametrization",
    [
        VectorCodebook(bits=3, group_size=2),
        AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4),
        AdditiveCodebooks(num_codebooks=2, bits=3, in_group=2, out_group=2, scale_group=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_metric", [False, True])
def test_every_refinement_lowers_the_error_or_leaves_it(parametrization, with_metric):
    weight = gaussian(10, 16, 16, dtype=torch.float64)
    metric = gaussian(11, 16, 16, dtype=torch.float64).square() if with_metric else None
    weights = None if metric is None else Diagonal(metric)
    errors = []
    for rounds in range(5):  # the last round as narrow as the others
        options = FitOptions(iterations=rounds, beam_size=1)
        rep = parametrization.fit(weight, metric=weights, options=options)
        assert rep.parametrization == parametrization
        errors.append(error(rep, weight, metric))
    for before, after in itertools.pairwise(errors):
        assert after <= before * (1 + 1e-12)
    assert errors[-1] < errors[0]


def test_a_wide_search_in_the_last_round_pays():
    weight = gaussian(15, 32, 32, dtype=torch.float64)
    p = AdditiveCodebooks(num_codebooks=3, bits=3, in_group=4)
    narrow, wide = (
        error(p.fit(weight, options=FitOptions(beam_size=beam)), weight) for beam in (1, 16)
    )
    assert wide < narrow


def test_more_codes_than_groups():
    weight = gaussian(12, 2, 4, dtype=torch.float64)
    for p in (
        SharedValues(num_values=64),
        VectorCodebook(bits=6, group_size=2),
        AdditiveCodebooks(num_codebooks=2, bits=6, in_group=2),
    ):
        rep = p.fit(weight)
        check_valid(rep)
        torch.testing.assert_close(rep.decode(), weight, rtol=1e-9, atol=1e-9)


@each
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(parametrization, bad):
    weight = gaussian(13, 8, 8)
    weight[3, 5] = bad
    with pytest.raises(ValueError, match="weight must be finite"):
        parametrization.fit(weight)


@each
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.complex64])
def test_weights_that_are_not_floating_are_refused(parametrization, dtype):
    with pytest.raises(TypeError, match=f"weight must be floating, got {dtype}"):
        parametrization.fit(torch.ones(8, 8).to(dtype))


@each
def test_bad_metrics_are_refused(parametrization):
    weight = gaussian(14, 8, 8)
    words = r"a diagonal metric must have shape \[8, 8\] or \[1, 8\], got "
    for metric in (torch.ones(8), torch.ones(8, 1), torch.ones(4, 16)):
        with pytest.raises(ValueError, match=words):
            parametrization.fit(weight, metric=Diagonal(metric))


@pytest.mark.parametrize(
    ("parametrization", "name"),
    [
        (UniformGrid(bits=2, group_size=4), "group_size=4"),
        (VectorCodebook(bits=2, group_size=4), "group_size=4"),
        (VectorCodebook(bits=2, group_size=2, scale_group=4), "scale_group=4"),
        (AdditiveCodebooks(num_codebooks=2, bits=2, in_group=4), "in_group=4"),
        (AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, scale_group=4), "scale_group=4"),
    ],
    ids=str,
)
def test_groups_that_do_not_divide_are_refused_by_their_own_name(parametrization, name):
    with pytest.raises(ValueError, match=rf"{name}\b.*\[6, 10\].*\[1, 2, 5, 10\]"):
        parametrization.fit(torch.ones(6, 10))


def test_out_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"out_group=4\b.*\[6, 10\].*\[1, 2, 3, 6\]"):
        AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=4).fit(torch.ones(6, 10))


@pytest.mark.parametrize(
    ("kind", "arguments", "error_kind", "words"),
    [
        (SharedValues, {"num_values": 0}, ValueError, r"num_values must be in 1..65536, got 0"),
        (SharedValues, {"num_values": 2.0}, TypeError, "num_values must be an int, got 2.0"),
        (SharedValues, {"num_values": True}, TypeError, "num_values"),
        (UniformGrid, {"bits": 9}, ValueError, r"bits must be in 1..8, got 9"),
        (UniformGrid, {"bits": 2, "group_size": 0}, ValueError, "group_size"),
        (UniformGrid, {"bits": 2, "symmetric": 1}, TypeError, "symmetric must be a bool, got 1"),
        (VectorCodebook, {"bits": 17, "group_size": 2}, ValueError, "bits"),
        (
            VectorCodebook,
            {"bits": 2, "group_size": 2, "scale_group": 3},
            ValueError,
            "scale_group must be a multiple of group_size=2, got 3",
        ),
        (
            AdditiveCodebooks,
            {"num_codebooks": 0, "bits": 2, "in_group": 2},
            ValueError,
            "num_codebooks",
        ),
        (FitOptions, {"beam_size": 0}, ValueError, "beam_size"),
        (FitOptions, {"iterations": -1}, ValueError, "iterations"),
        (SearchOptions, {"beam_size": 0}, ValueError, "beam_size"),
        (SearchOptions, {"beam_size": 2.0}, TypeError, "beam_size must be an int"),
        (
            AdditiveCodebooks,
            {"num_codebooks": 2, "bits": 2, "in_group": 4, "scale_group": 6},
            ValueError,
            "scale_group must be a multiple of in_group=4, got 6",
        ),
    ],
)
def test_bad_settings_cannot_be_made(kind, arguments, error_kind, words):
    with pytest.raises(error_kind, match=words):
        kind(**arguments)


@each
def test_settings_are_frozen_and_comparable(parametrization):
    name = next(iter(parametrization.__dataclass_fields__))
    with pytest.raises(FrozenInstanceError):
        setattr(parametrization, name, 3)
    twin = replace(parametrization)
    assert twin == parametrization
    assert hash(twin) == hash(parametrization)
    assert isinstance(parametrization, Parametrization)


@pytest.mark.parametrize(
    "p",
    [AdditiveCodebooks(num_codebooks=2, bits=4, in_group=4), E8P(bits=3)],
    ids=str,
)
def test_effort_changes_what_is_found_and_not_what_it_is(p):
    """Equal codes and values are equal representations, whatever found them."""
    weight = gaussian(16, 16, 32, dtype=torch.float64)
    hasty = p.fit(weight, options=FitOptions(iterations=0, beam_size=1))
    careful = p.fit(weight, options=FitOptions(iterations=3, beam_size=32))
    assert hasty.scheme == careful.scheme
    assert hasty.scheme.to_json() == careful.scheme.to_json()
    assert error(careful, weight) < error(hasty, weight)
    assert torch.equal(hasty.copy_(careful).decode(), careful.decode())
    target, moved = weight.flip(0), careful.clone()
    for rep, beam in ((careful, 1), (moved, 64)):
        step(
            rep,
            target,
            rounding=Nearest(),
            subspace=AllGroups(),
            options=SearchOptions(beam_size=beam),
        )
    assert error(moved, target) < error(careful, target)
    assert moved.scheme == careful.scheme


@pytest.mark.parametrize(("flag", "zeros"), [("symmetric", [2]), ("integer_zeros", [0, 1, 2, 3])])
def test_grids_that_hold_zero_are_nearly_the_best_of_all_codes(flag, zeros):
    """Every code of five weights, every zero point, the best scale in closed form."""
    weight = gaussian(3, 60, 5, dtype=torch.float64) + 0.4
    codes = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.float64)
    levels = torch.cat([codes - zero for zero in zeros])
    energy = levels.square().sum(1)
    gains = torch.where(energy > 0, (weight @ levels.T).square() / energy, 0.0)
    best = weight.square().sum(1) - gains.amax(1)
    rep = UniformGrid(bits=2, **{flag: True}).fit(weight)
    found = (rep.decode() - weight).square().sum(1)
    assert bool((found >= best - 1e-9).all())
    assert float(found.sum()) < 1.1 * float(best.sum())
    if flag == "symmetric":  # the level more is on either side
        assert bool((rep.values["scales"] > 0).any() and (rep.values["scales"] < 0).any())
