"""Rotated weights: isometry, metrics, fits and steps in the space, and incoherence itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import ask, step
from torch import Tensor

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AllGroups,
    Diagonal,
    Nearest,
    Representation,
    Rotation,
    Row,
    Scheme,
    UniformGrid,
    VectorCodebook,
    row_metric_search,
)
from pvopt.spaces.orthogonal import transform
from pvopt.spaces.rotation import random_signs

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


def enter(space: Rotation, weight: Tensor) -> Tensor:
    return space.enter(weight, {})


def leave(space: Rotation, weight: Tensor) -> Tensor:
    return space.leave(weight, {}, tuple(weight.shape))


def kurtosis(x: Tensor) -> float:
    """Fourth moment over the squared second one: 3 for Gaussian entries."""
    return float(x.pow(4).mean() / x.square().mean().square())


@some
@given(
    seed=st.integers(0, 2**63 - 1),
    shape=st.sampled_from([(6, 8), (1, 12), (24, 16), (5, 7), (16, 3, 2, 2), (8,), (16, 1)]),
)
def test_rotation_is_an_isometry_and_unrotation_its_inverse_and_adjoint(seed, shape):
    space = Rotation(seed=seed)
    weight, other = gaussian(seed % 1000, *shape), gaussian(seed % 1000 + 1, *shape)
    rotated, back = enter(space, weight), leave(space, other)
    assert rotated.shape == weight.shape
    torch.testing.assert_close(rotated.norm(), weight.norm())
    torch.testing.assert_close(leave(space, rotated), weight)
    torch.testing.assert_close(enter(space, leave(space, weight)), weight)
    torch.testing.assert_close((rotated * other).sum(), (weight * back).sum())
    torch.testing.assert_close(enter(space, weight + 2 * other), rotated + 2 * enter(space, other))


@pytest.mark.parametrize("block", [1, 2, 4, 12])
def test_blocks_are_rotated_by_themselves(block):
    space, weight = Rotation(seed=3, block=block), gaussian(0, 12, 24)
    rotated = enter(space, weight)
    torch.testing.assert_close(leave(space, rotated), weight)
    for i in range(0, 12, block):
        for j in range(0, 24, block):
            part = torch.zeros_like(weight)
            part[i : i + block, j : j + block] = weight[i : i + block, j : j + block]
            found = enter(space, part)
            found[i : i + block, j : j + block] -= rotated[i : i + block, j : j + block]
            torch.testing.assert_close(found, torch.zeros_like(found))


def test_rotation_is_the_product_with_two_matrices():
    """U W V' with U = H diag(s), read off the unit matrices."""
    space, weight = Rotation(seed=4), gaussian(0, 12, 8)
    left, right = transform(torch.eye(12, dtype=DOUBLE)), transform(torch.eye(8, dtype=DOUBLE))
    unit = enter(space, torch.eye(12, 8, dtype=DOUBLE))
    signs_left = (left @ unit @ right).diagonal().sign()
    assert set(signs_left.tolist()) == {-1.0, 1.0}
    found = left @ enter(space, weight) @ right / weight  # s_left s_right'
    torch.testing.assert_close(found.abs(), torch.ones_like(found))
    assert int(torch.linalg.matrix_rank(found)) == 1


def test_signs_are_the_same_for_ever():
    """Checkpoints store the seed alone."""
    assert random_signs(7, 0, 8).tolist() == LEFT
    assert random_signs(7, 1, 16).tolist() == RIGHT
    assert random_signs(8, 1, 16).tolist() != RIGHT
    # longer weights begin alike, so nothing depends on a total
    assert random_signs(7, 1, 999)[:16].tolist() == RIGHT
    # and they are those of a weight: H of a unit vector has the sign of its place
    rotated = enter(Rotation(seed=7, block=1), torch.ones(8, 16))
    assert torch.equal(rotated, torch.tensor(LEFT)[:, None] * torch.tensor(RIGHT).float())


@each
@some
@given(seed=SEEDS)
def test_split_and_merge_are_inverse_and_adjoint(inner, seed):
    weight = gaussian(seed, 6, 16)
    rep = Scheme(inner, Rotation(seed=seed)).fit(weight)
    groups = rep.split(weight)
    torch.testing.assert_close(rep.merge(groups), weight)
    torch.testing.assert_close(groups.square().sum(), weight.square().sum())
    other = gaussian(seed + 1, *groups.shape)
    torch.testing.assert_close((groups * other).sum(), (weight * rep.merge(other)).sum())


@each
def test_errors_are_those_of_the_inner_fit(inner):
    scheme, weight = Scheme(inner, Rotation()), gaussian(2, 24, 16)
    rep = scheme.fit(weight)
    rotated = inner.fit(enter(Rotation(), weight))
    assert torch.equal(rep.group_codes(), rotated.group_codes())
    torch.testing.assert_close(enter(Rotation(), rep.decode()), rotated.decode())
    assert scheme.bits_per_weight((24, 16)) == inner.bits_per_weight((24, 16))


@each
def test_a_v_step_in_rotated_space_lowers_the_error_of_the_weight(inner):
    weight = gaussian(3, 24, 16)
    rep = Scheme(inner, Rotation()).fit(weight)
    target = weight + 0.3 * gaussian(4, 24, 16)
    before = float((rep.decode() - target).square().sum())
    assert step(rep, target, rounding=Nearest(), subspace=AllGroups()) > 0
    assert float((rep.decode() - target).square().sum()) < before


@each
def test_gradients_equal_autograd_through_decode(inner):
    rep, gradient = Scheme(inner, Rotation(seed=3)).fit(gaussian(5, 6, 16)), gaussian(6, 6, 16)
    found = rep.pull([gradient])
    values = {name: value.clone().requires_grad_() for name, value in rep.values.items()}
    decoded = Representation(inner, rep.codes, values, rep.shape, rep.space).decode()
    wanted = torch.autograd.grad(decoded, list(values.values()), gradient)
    for name, value in zip(values, wanted, strict=True):
        torch.testing.assert_close(found[name], value)


@some
@given(seed=SEEDS)
def test_a_metric_that_rows_share_is_rotated_exactly(seed):
    """||X W'|| is the norm of rows in the rotated metric."""
    space = Rotation(seed=seed)
    weight, inputs = gaussian(seed, 6, 10), gaussian(seed + 1, 20, 10)
    metric = space.enter_metric(Row(inputs.T @ inputs), (6, 10), {})
    assert isinstance(metric, Row)
    hessian, rotated = metric.hessian, enter(space, weight)
    torch.testing.assert_close(
        ((rotated @ hessian) * rotated).sum(), (inputs @ weight.T).square().sum()
    )
    torch.testing.assert_close(hessian, hessian.T)


def test_a_search_in_a_metric_lowers_the_layer_error():
    weight, inputs = gaussian(7, 16, 24), gaussian(8, 40, 24) @ gaussian(9, 24, 24)
    rep = Scheme(E8P(bits=2), Rotation()).fit(weight)

    def error() -> float:
        return float((inputs @ (rep.decode() - weight).T).square().sum())

    before = error()
    assert row_metric_search(rep, weight, Row(inputs.T @ inputs), passes=2) > 0
    assert error() < 0.8 * before


def test_diagonal_metrics_are_refused():
    scheme, weight = Scheme(E8P(bits=2), Rotation()), gaussian(10, 8, 8)
    words = "a rotated space takes no diagonal metric that differs between rows"
    metric = Diagonal(torch.ones_like(weight))
    with pytest.raises(TypeError, match=words):
        scheme.fit(weight, metric=metric)
    with pytest.raises(TypeError, match=words):
        scheme.space.enter_metric(metric, (8, 8), {})
    # one that all rows share has a form: a full one
    shared = Diagonal(torch.rand(1, 8, dtype=DOUBLE))
    found = scheme.space.enter_metric(shared, (8, 8), {})
    torch.testing.assert_close(
        found.squared_norm(enter(scheme.space, weight)), shared.squared_norm(weight)
    )


def test_kurtosis_drops_to_that_of_gaussian_entries():
    for seed in range(20):
        weight = with_outliers(seed, 64, 96)
        assert kurtosis(weight) > 50
        for rotated in (enter(Rotation(seed=seed), weight), gaussian(seed, 64, 96)):
            assert kurtosis(rotated) < 3.6


def test_the_largest_entry_is_small():
    """Incoherence of QuIP#: max |W_ij| <= mu ||W|| / sqrt(mn), mu = 2 log(4 mn / delta)."""
    weight = torch.zeros(64, 96, dtype=DOUBLE)
    weight[3, 5] = 1.0  # the worst case has a single entry
    rotated = enter(Rotation(), weight)
    torch.testing.assert_close(rotated.abs(), torch.full_like(rotated, (64 * 96) ** -0.5))


def test_outliers_cost_less_in_the_rotated_space():
    for seed in range(5):
        weight = with_outliers(seed, 32, 64)
        for inner in (E8P(bits=2), E8P(bits=3), E8P(bits=2, per_tensor=True)):
            plain, rotated = (
                float((p.fit(weight).decode() - weight).square().sum())
                for p in (inner, Scheme(inner, Rotation()))
            )
            assert rotated < 0.8 * plain


def test_scalar_codes_have_brackets_and_others_have_none():
    rep = Scheme(UniformGrid(bits=2), Rotation()).fit(gaussian(11, 4, 8))
    p, target = rep.parametrization, rep.split(gaussian(12, 4, 8))
    found = p.bracket(ask(rep, target))
    levels = [p.decode_groups(rep, None, found.codes[:, slot]) for slot in (0, 1)]
    inside = (levels[0] <= target) & (target <= levels[1])
    outside = (levels[0] == levels[1]).logical_and(~inside)
    assert bool((inside | outside).all())
    other = Scheme(E8P(bits=2), Rotation()).fit(gaussian(13, 4, 8))
    with pytest.raises(TypeError, match="E8P has no scalar levels"):
        other.parametrization.bracket(ask(other, other.split(gaussian(12, 4, 8))))


def test_bad_settings_cannot_be_made():
    for seed in (-1, 1 << 63):
        with pytest.raises(ValueError, match="seed must be in"):
            Rotation(seed=seed)
    with pytest.raises(TypeError, match="seed must be an int"):
        Rotation(seed=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block must be in"):
        Rotation(block=0)
    with pytest.raises(ValueError, match="size 50257: its odd part"):
        Rotation(block=50257)
    assert Rotation() == Rotation(seed=0, block=None)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not divide the 12 columns"):
        Scheme(E8P(bits=2), Rotation()).fit(torch.ones(4, 12))
    with pytest.raises(ValueError, match="weight must be finite"):
        Scheme(E8P(bits=2), Rotation()).fit(torch.full((8, 8), torch.nan))
    with pytest.raises(ValueError, match="size 50257"):
        Scheme(UniformGrid(bits=2), Rotation()).check((50257, 8))
    with pytest.raises(ValueError, match="block=8 does not divide the 12 rows"):
        Scheme(UniformGrid(bits=2), Rotation(block=8)).check((12, 8))
    with pytest.raises(ValueError, match="block=8 does not divide the 12 columns"):
        Scheme(UniformGrid(bits=2), Rotation(block=8)).check((8, 12))


def test_a_representation_survives_a_copy():
    scheme = Scheme(E8P(bits=2), Rotation(seed=9))
    rep = scheme.fit(gaussian(14, 8, 16))
    twin = Representation(scheme.parametrization, rep.codes, rep.values, rep.shape, scheme.space)
    assert torch.equal(twin.decode(), rep.clone().decode())
