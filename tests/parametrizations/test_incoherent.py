"""Rotated weights: isometry, metrics, what is delegated, and incoherence itself."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AllGroups,
    Incoherent,
    Nearest,
    Parametrization,
    Representation,
    SharedValues,
    Stochastic,
    UniformGrid,
    VectorCodebook,
    row_metric_search,
    v_step,
)
from pvopt.starts import GPTQ, Fit, layer_error
from pvopt.spaces.orthogonal import transform

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=15, deadline=None, derandomize=True)
DOUBLE = torch.float64
INNER = [
    UniformGrid(bits=3, group_size=4),
    VectorCodebook(bits=3, group_size=4),
    AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4),
    E8P(bits=2),
]
# The signs of seed 7, from NumPy's PCG64.
LEFT = [-1, 1, 1, 1, -1, 1, -1, -1]
RIGHT = [-1, -1, 1, 1, -1, -1, 1, -1, 1, -1, 1, -1, -1, -1, 1, 1]
each = pytest.mark.parametrize("inner", INNER, ids=lambda p: type(p).__name__)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def with_outliers(seed: int, *shape: int) -> Tensor:
    weight = gaussian(seed, *shape)
    places = torch.randint(weight.numel(), (5,), generator=torch.Generator().manual_seed(seed))
    weight.view(-1)[places] *= 40.0
    return weight


def kurtosis(x: Tensor) -> float:
    """Fourth moment over the squared second one: 3 for Gaussian entries."""
    return float(x.pow(4).mean() / x.square().mean().square())


@some
@given(
    seed=st.integers(0, 2**63 - 1),
    shape=st.sampled_from([(6, 8), (1, 12), (24, 16), (5, 7), (16, 3, 2, 2), (8,), (16, 1)]),
)
def test_rotation_is_an_isometry_and_unrotation_its_inverse_and_adjoint(seed, shape):
    p = Incoherent(UniformGrid(bits=2), seed=seed)
    weight, other = gaussian(seed % 1000, *shape), gaussian(seed % 1000 + 1, *shape)
    rotated = p.rotate(weight)
    assert rotated.shape == weight.shape
    torch.testing.assert_close(rotated.norm(), weight.norm())
    torch.testing.assert_close(p.unrotate(rotated), weight)
    torch.testing.assert_close(p.rotate(p.unrotate(weight)), weight)
    torch.testing.assert_close((rotated * other).sum(), (weight * p.unrotate(other)).sum())
    torch.testing.assert_close(p.rotate(weight + 2 * other), rotated + 2 * p.rotate(other))


def test_rotation_is_the_product_with_two_matrices():
    """U W V' with U = H diag(s), read off the unit matrices."""
    p, weight = Incoherent(UniformGrid(bits=2), seed=4), gaussian(0, 12, 8)
    left, right = transform(torch.eye(12, dtype=DOUBLE)), transform(torch.eye(8, dtype=DOUBLE))
    signs_left = (left @ p.rotate(torch.eye(12, 8, dtype=DOUBLE)) @ right).diagonal().sign()
    assert set(signs_left.tolist()) == {-1.0, 1.0}
    found = left @ p.rotate(weight) @ right / weight  # s_left s_right'
    torch.testing.assert_close(found.abs(), torch.ones_like(found))
    assert int(torch.linalg.matrix_rank(found)) == 1


def test_signs_are_the_same_for_ever():
    """Checkpoints store the seed alone."""
    p = Incoherent(UniformGrid(bits=2), seed=7)
    left, right = p._signs(torch.zeros(8, 16, dtype=torch.int64))
    assert left.tolist() == LEFT
    assert right.tolist() == RIGHT
    other = Incoherent(UniformGrid(bits=2), seed=8)._signs(torch.zeros(8, 16, dtype=torch.int64))
    assert other[1].tolist() != RIGHT
    # longer weights begin alike, so nothing depends on a total
    assert p._signs(torch.zeros(8, 999, dtype=torch.int64))[1][:16].tolist() == RIGHT


@each
@some
@given(seed=SEEDS)
def test_split_and_merge_are_inverse_and_adjoint(inner, seed):
    p = Incoherent(inner, seed=seed)
    weight = gaussian(seed, 6, 16)
    groups = p.split(weight)
    torch.testing.assert_close(p.merge(groups, (6, 16)), weight)
    torch.testing.assert_close(groups.square().sum(), weight.square().sum())
    other = gaussian(seed + 1, *groups.shape)
    torch.testing.assert_close((groups * other).sum(), (weight * p.merge(other, (6, 16))).sum())


@each
def test_errors_are_those_of_the_inner_fit(inner):
    p, weight = Incoherent(inner), gaussian(2, 24, 16)
    rep = p.fit(weight)
    rotated = inner.fit(p.rotate(weight))
    assert torch.equal(rep.codes, rotated.codes)
    torch.testing.assert_close(p.rotate(rep.decode()), rotated.decode())
    assert p.bits_per_weight((24, 16)) == inner.bits_per_weight((24, 16))


@each
def test_a_v_step_in_rotated_space_lowers_the_error_of_the_weight(inner):
    p, weight = Incoherent(inner), gaussian(3, 24, 16)
    rep = p.fit(weight)
    target = weight + 0.3 * gaussian(4, 24, 16)
    before = float((rep.decode() - target).square().sum())
    decoded = p.decode_groups(rep)
    moved = v_step(rep, target, decoded, rounding=Nearest(), subspace=AllGroups())
    assert moved > 0
    torch.testing.assert_close(p.merge(decoded, rep.shape), rep.decode())
    assert float((rep.decode() - target).square().sum()) < before


@each
def test_gradients_equal_autograd_through_decode(inner):
    p = Incoherent(inner, seed=3)
    rep, gradient = p.fit(gaussian(5, 6, 16)), gaussian(6, 6, 16)
    found = p.value_gradients(rep, gradient)
    wanted = Parametrization.value_gradients(p, rep, gradient)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])


@some
@given(seed=SEEDS)
def test_a_metric_that_rows_share_is_rotated_exactly(seed):
    """||X W'|| is the norm of rows in the rotated metric."""
    p = Incoherent(VectorCodebook(bits=2, group_size=2), seed=seed)
    weight, inputs = gaussian(seed, 6, 10), gaussian(seed + 1, 20, 10)
    hessian = p.split_hessian(inputs.T @ inputs, (6, 10))
    rotated = p.rotate(weight)
    torch.testing.assert_close(
        ((rotated @ hessian) * rotated).sum(), (inputs @ weight.T).square().sum()
    )
    torch.testing.assert_close(hessian, hessian.T)


def test_a_search_in_a_metric_lowers_the_layer_error():
    weight, inputs = gaussian(7, 16, 24), gaussian(8, 40, 24) @ gaussian(9, 24, 24)
    rep = Incoherent(E8P(bits=2)).fit(weight)

    def error() -> float:
        return float((inputs @ (rep.decode() - weight).T).square().sum())

    before = error()
    assert row_metric_search(rep, weight, inputs.T @ inputs, passes=2) > 0
    assert error() < 0.8 * before


@pytest.mark.parametrize(
    ("how", "inner"),
    [
        (Fit(), E8P(bits=2)),
        (Fit(weighted=True), E8P(bits=2)),
        (GPTQ(), E8P(bits=2)),
        (GPTQ(), E8P(bits=4, per_tensor=True)),
        (GPTQ(), UniformGrid(bits=2, group_size=8)),
        (GPTQ(), VectorCodebook(bits=3, group_size=4)),
    ],
    ids=str,
)
def test_calibrated_starts_work_in_the_rotated_space(how, inner):
    """The start of the rotated weight under the rotated metric, wrapped."""
    weight, inputs = with_outliers(15, 16, 24), gaussian(16, 60, 24) @ gaussian(17, 24, 24)
    p, hessian = Incoherent(inner), inputs.T @ inputs
    rep = how.start(weight, p, hessian=hessian)
    assert rep.parametrization == p
    rotated = how.start(p.rotate(weight), inner, hessian=p.split_hessian(hessian, (16, 24)))
    assert torch.equal(rep.codes, rotated.codes)
    found = float(layer_error(weight, rep.decode(), hessian))
    plain = float(layer_error(weight, p.fit(weight).decode(), hessian))
    if isinstance(how, GPTQ):
        assert found < 0.9 * plain


def test_diagonal_metrics_are_refused():
    p, weight = Incoherent(E8P(bits=2)), gaussian(10, 8, 8)
    words = "Incoherent takes no diagonal metric"
    with pytest.raises(TypeError, match=words):
        p.fit(weight, metric=torch.ones_like(weight))
    with pytest.raises(TypeError, match=words):
        p.split_diagonal(torch.ones_like(weight))


def test_kurtosis_drops_to_that_of_gaussian_entries():
    for seed in range(20):
        weight = with_outliers(seed, 64, 96)
        assert kurtosis(weight) > 50
        for rotated in (Incoherent(E8P(bits=2), seed=seed).rotate(weight), gaussian(seed, 64, 96)):
            assert kurtosis(rotated) < 3.6


def test_the_largest_entry_is_small():
    """Incoherence of QuIP#: max |W_ij| <= mu ||W|| / sqrt(mn), mu = 2 log(4 mn / delta)."""
    weight = torch.zeros(64, 96, dtype=DOUBLE)
    weight[3, 5] = 1.0  # the worst case has a single entry
    rotated = Incoherent(E8P(bits=2)).rotate(weight)
    torch.testing.assert_close(rotated.abs(), torch.full_like(rotated, (64 * 96) ** -0.5))


def test_outliers_cost_less_in_the_rotated_space():
    for seed in range(5):
        weight = with_outliers(seed, 32, 64)
        for inner in (E8P(bits=2), E8P(bits=3), E8P(bits=2, per_tensor=True)):
            plain, rotated = (
                float((p.fit(weight).decode() - weight).square().sum())
                for p in (inner, Incoherent(inner))
            )
            assert rotated < 0.8 * plain


def test_scalar_codes_have_brackets_and_others_have_none():
    rep = Incoherent(UniformGrid(bits=2)).fit(gaussian(11, 4, 8))
    target = rep.parametrization.split(gaussian(12, 4, 8))
    found = rep.parametrization.bracket(target, rep, None)
    levels = [rep.parametrization.decode_groups(rep, None, found.codes[:, slot]) for slot in (0, 1)]
    inside = (levels[0] <= target) & (target <= levels[1])
    outside = (levels[0] == levels[1]).logical_and(~inside)
    assert bool((inside | outside).all())
    with pytest.raises(TypeError, match="E8P has no scalar levels"):
        Incoherent(E8P(bits=2)).bracket(
            target, Incoherent(E8P(bits=2)).fit(gaussian(13, 4, 8)), None
        )
    assert Stochastic("linear").check(Incoherent(UniformGrid(bits=2))) is None
    with pytest.raises(TypeError):
        Stochastic("linear").check(Incoherent(E8P(bits=2)))


def test_everything_that_a_parametrization_may_override_is_delegated():
    """A member that is not would describe the inner parametrization wrongly."""
    derived = {"decode", "word_bits", "__init__", "__abstractmethods__"}
    base = {
        name
        for name, member in vars(Parametrization).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }
    assert base - derived <= set(vars(Incoherent))


def test_bad_settings_cannot_be_made():
    with pytest.raises(TypeError, match="inner must be a Parametrization other than Incoherent"):
        Incoherent(Incoherent(E8P(bits=2)))
    with pytest.raises(TypeError, match="inner must be a Parametrization"):
        Incoherent("e8p:2")  # type: ignore[arg-type]
    for seed in (-1, 1 << 63):
        with pytest.raises(ValueError, match="seed must be in"):
            Incoherent(E8P(bits=2), seed)
    assert Incoherent(SharedValues(num_values=3)) == Incoherent(SharedValues(num_values=3), 0)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not divide the 12 columns"):
        Incoherent(E8P(bits=2)).fit(torch.ones(4, 12))
    with pytest.raises(ValueError, match="weight must be finite"):
        Incoherent(E8P(bits=2)).fit(torch.full((8, 8), torch.nan))
    with pytest.raises(ValueError, match="size 50257"):
        Incoherent(UniformGrid(bits=2)).layout((50257, 8))


def test_a_representation_survives_a_copy():
    rep = Incoherent(E8P(bits=2), seed=9).fit(gaussian(14, 8, 16))
    twin = Representation(Incoherent(E8P(bits=2), seed=9), rep.codes, rep.values, rep.shape)
    assert torch.equal(twin.decode(), rep.clone().decode())
