"""What every space owes, alone and in chains, and how every parametrization lives in it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt import (
    E8P,
    AdditiveCodebooks,
    Binary,
    Chain,
    Diagonal,
    Greedy,
    Identity,
    Metric,
    Nearest,
    Padding,
    Parametrization,
    Permutation,
    QuantizedNonzeros,
    QuantizedScales,
    Representation,
    Rotation,
    Row,
    Scaling,
    Scheme,
    SearchOptions,
    SharedValues,
    Space,
    Sparse,
    SparseNM,
    Ternary,
    TrustRegion,
    UniformGrid,
    VectorCodebook,
    ZeroRow,
    v_step,
)
from pvopt.core.layout import matrix_shape
from pvopt.engine.dense_search import DenseSearch

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=8, deadline=None, derandomize=True)
DOUBLE = torch.float64
SPACES = [
    Identity(),
    Rotation(seed=3),
    Rotation(block=2),
    Permutation(),
    Scaling(inputs=True),
    Scaling(outputs=True),
    Scaling(inputs=True, outputs=True),
    Padding(columns=4),
    Padding(rows=8, columns=4, free=False),
    Chain((Permutation(), Rotation())),
    Chain((Scaling(inputs=True), Rotation(seed=1))),
    Chain((Rotation(), Scaling(inputs=True, outputs=True))),
    Chain((Padding(columns=4), Rotation())),
    Chain((Padding(rows=4, columns=4, free=False), Rotation(block=2), Scaling(outputs=True))),
    Chain((Scaling(outputs=True), Permutation(), Padding(rows=5, columns=5))),
    ZeroRow(row=1),
    Chain((ZeroRow(row=0), Scaling(inputs=True), Padding(rows=4, columns=4))),
]
SHAPES = [(6, 10), (2, 1, 5, 2), (1, 6)]
each = pytest.mark.parametrize("space", SPACES, ids=str)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def fits(space: Space, shape: tuple[int, ...]) -> bool:
    try:
        space.inner_shape(shape)
    except ValueError:
        return False
    return True


def owned_by(space: Space, shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """Draw what a space owns: permutations, and scales of both signs away from 0."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: torch.randperm(stream.count, generator=generator).to(stream.dtype)
        for name, stream in space.streams(shape).items()
    }
    for name, size in space.value_shapes(shape).items():
        drawn = gaussian(seed, *size)
        found[name] = drawn + 0.2 * drawn.sign()
    return found


def cases(seed: int, space: Space):
    """Yield a shape, what the space owns, and a weight, for every shape that fits."""
    for shape in SHAPES:
        if fits(space, shape):
            weight = gaussian(seed + 1, *shape)
            for part in space.parts:
                if isinstance(part, ZeroRow):
                    weight[part.row] = 0.0
            yield shape, owned_by(space, shape, seed), weight


@each
@some
@given(seed=SEEDS)
def test_leaving_undoes_entering(space, seed):
    for shape, owned, weight in cases(seed, space):
        inner = space.enter(weight, owned)
        assert tuple(inner.shape) == tuple(space.inner_shape(shape))
        back = space.leave(inner, owned, shape)
        assert tuple(back.shape) == shape
        torch.testing.assert_close(back, weight)
        space.check_codes(owned, shape)


@each
@some
@given(seed=SEEDS)
def test_pull_is_the_adjoint_of_leave(space, seed):
    for shape, owned, gradient in cases(seed, space):
        inner = gaussian(seed + 2, *space.inner_shape(shape))
        pulled = space.pull(gradient, owned)
        assert tuple(pulled.shape) == tuple(inner.shape)
        left = (pulled * inner).sum()
        torch.testing.assert_close(left, (gradient * space.leave(inner, owned, shape)).sum())


@each
@some
@given(seed=SEEDS)
def test_gradients_of_values_are_those_of_autograd(space, seed):
    for shape, owned, gradient in cases(seed, space):
        inner = gaussian(seed + 2, *space.inner_shape(shape)).requires_grad_()
        names = list(space.value_shapes(shape))
        leaves = {**owned, **{n: owned[n].clone().requires_grad_() for n in names}}
        weight = space.leave(inner, leaves, shape)
        inputs = [inner, *(leaves[n] for n in names)]
        wanted = torch.autograd.grad(weight, inputs, gradient, allow_unused=False)
        torch.testing.assert_close(space.pull(gradient, owned), wanted[0])
        found = space.pull_values(gradient, inner.detach(), owned)
        assert set(found) == set(names)
        for name, value in zip(names, wanted[1:], strict=True):
            torch.testing.assert_close(found[name], value)


def metrics_of(shape: tuple[int, ...], seed: int) -> dict[str, Metric | None]:
    columns = torch.Size(shape[1:]).numel()
    inputs = gaussian(seed + 3, 2 * columns, columns)
    return {
        "Euclidean": None,
        "diagonal": Diagonal(gaussian(seed + 4, *shape).square()),
        "shared": Diagonal(gaussian(seed + 5, 1, columns).square()),
        "rows": Row(inputs.T @ inputs),
    }


# Rotations mix rows, so they take what rows share; scaled and added rows differ from each other.
REFUSED: dict[Space, set[str]] = {
    Rotation(seed=3): {"diagonal"},
    Rotation(block=2): {"diagonal"},
    Scaling(outputs=True): {"rows"},
    Scaling(inputs=True, outputs=True): {"rows"},
    Chain((Permutation(), Rotation())): {"diagonal"},
    Chain((Scaling(inputs=True), Rotation(seed=1))): {"diagonal"},
    Chain((Rotation(), Scaling(inputs=True, outputs=True))): {"diagonal", "shared", "rows"},
    Chain((Padding(columns=4), Rotation())): {"diagonal"},
    Chain((Padding(rows=4, columns=4, free=False), Rotation(block=2), Scaling(outputs=True))): {
        "diagonal",
        "shared",
        "rows",
    },
    Chain((Scaling(outputs=True), Permutation(), Padding(rows=5, columns=5))): {"rows"},
}
WHY = "diagonal metric that differs between rows|takes no scales of rows: rows would differ"


@each
@some
@given(seed=SEEDS)
def test_norms_are_the_same_in_the_space_or_the_metric_is_refused(space, seed):
    for shape, owned, weight in cases(seed, space):
        for name, metric in metrics_of(shape, seed).items():
            if name in REFUSED.get(space, ()):
                if shape[0] > 1:
                    with pytest.raises(TypeError, match=WHY):
                        space.enter_metric(metric, shape, owned)
                continue
            inside = space.enter_metric(metric, shape, owned)
            inner = space.enter(weight, owned)
            torch.testing.assert_close(norm(inside, inner), norm(metric, weight))
            # so it is for any weight in the space, unless what is beyond the weight counts
            other = gaussian(seed + 6, *space.inner_shape(shape))
            left = space.leave(other, owned, shape)
            more_rows = matrix_shape(space.inner_shape(shape))[0] > matrix_shape(shape)[0]
            counts = metric is None and "free=False" in str(space)
            if counts or (name == "rows" and more_rows):
                assert float(norm(inside, other)) >= float(norm(metric, left)) * (1 - 1e-12)
            else:
                torch.testing.assert_close(norm(inside, other), norm(metric, left))


def test_scales_may_be_left_out_of_metrics():
    """Rows then have no scale for any metric, and a rotation that follows takes it."""
    sides, rotation = Scaling(inputs=True, outputs=True, weighted=False), Rotation(block=2)
    space, columns = Chain((sides, rotation)), Chain((Scaling(inputs=True), rotation))
    owned, metrics = owned_by(space, (6, 10), 0), metrics_of((6, 10), 0)
    assert space.enter_metric(None, (6, 10), owned) is None
    weight = gaussian(1, 6, 10)
    for name in ("shared", "rows"):
        found = space.enter_metric(metrics[name], (6, 10), owned)
        assert found is not None
        own = {"0.input_scales": owned["0.input_scales"]}
        wanted = columns.enter_metric(metrics[name], (6, 10), own)
        torch.testing.assert_close(norm(found, weight), norm(wanted, weight))
    with pytest.raises(TypeError, match=WHY):
        space.enter_metric(metrics["diagonal"], (6, 10), owned)


def norm(metric: Metric | None, weight: Tensor) -> Tensor:
    return weight.square().sum() if metric is None else metric.squared_norm(weight)


@each
@some
@given(seed=SEEDS)
def test_activations_take_the_place_of_weights(space, seed):
    for shape, owned, weight in cases(seed, space):
        if len(shape) > 2 or not space.on_activations:
            continue
        x = gaussian(seed + 3, 3, 2, shape[1])
        inner = space.enter(weight, owned)
        y = space.leave_outputs(space.enter_inputs(x, owned) @ inner.T, owned, shape)
        torch.testing.assert_close(y, x @ weight.T)


def test_every_space_maps_activations():
    assert all(space.on_activations for space in SPACES)


@each
def test_a_start_makes_what_the_space_owns(space):
    for shape, _, weight in cases(0, space):
        columns = torch.Size(shape[1:]).numel()
        for metric in (None, Diagonal(gaussian(3, 1, columns).square())):
            if metric is not None and "shared" in REFUSED.get(space, ()):
                continue
            codes, values = space.start(weight, metric)
            assert {n: tuple(c.shape) for n, c in codes.items()} == {
                n: s.shape for n, s in space.streams(shape).items()
            }
            assert {n: tuple(v.shape) for n, v in values.items()} == space.value_shapes(shape)
            for name, stream in space.streams(shape).items():
                stream.check(name, codes[name])
                assert codes[name].dtype == stream.dtype
                assert not stream.moves
            space.check_codes(codes, shape)
            owned = {**codes, **values}
            torch.testing.assert_close(
                space.leave(space.enter(weight, owned), owned, shape), weight
            )


def test_starts_of_zero_rows_and_columns_are_finite():
    weight = gaussian(0, 6, 10)
    weight[2], weight[:, 3] = 0.0, 0.0
    for space in SPACES:
        codes, values = space.start(weight, None)
        owned = {**codes, **values}
        assert bool(space.enter(weight, owned).isfinite().all())


def test_columns_are_ordered_by_importance():
    weight = torch.tensor([[1.0, -3.0, 2.0], [1.0, 0.0, 0.0]])
    assert Permutation().start(weight, None)[0]["order"].tolist() == [1, 2, 0]
    metric = Diagonal(torch.tensor([[1.0, 0.5, 9.0]]))
    assert Permutation().start(weight, metric)[0]["order"].tolist() == [2, 0, 1]
    assert Permutation().start(weight, Row(torch.diag(torch.tensor([1.0, 2.0, 3.0]))))[0][
        "order"
    ].tolist() == [2, 1, 0]


def test_scales_of_a_start_are_root_mean_squares():
    weight = gaussian(1, 6, 10)
    _, owned = Scaling(inputs=True, outputs=True).start(weight, None)
    inner = Scaling(inputs=True, outputs=True).enter(weight, owned)
    torch.testing.assert_close(inner.square().mean(1), torch.ones(6, dtype=DOUBLE))
    _, owned = Scaling(inputs=True).start(weight, None)
    torch.testing.assert_close(owned["input_scales"], weight.square().mean(0).sqrt())


def test_scales_of_zero_wipe_a_channel_out():
    space, weight = Scaling(inputs=True), gaussian(2, 4, 3)
    owned = {"input_scales": torch.tensor([1.0, 0.0, 2.0], dtype=DOUBLE)}
    inner = space.enter(weight, owned)
    assert bool(inner.isfinite().all())
    assert bool((space.leave(inner, owned, (4, 3))[:, 1] == 0).all())


@pytest.mark.parametrize(
    ("order", "words"),
    [([0, 0, 1], "order must name each of 3 columns once"), ([0, 1, 3], "in 0..2")],
)
def test_permutations_that_are_none_are_refused(order, words):
    rep = Scheme(UniformGrid(bits=2), Permutation()).fit(gaussian(3, 2, 3))
    codes = {**rep.codes, "space.order": torch.tensor(order, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=words):
        rep.check_codes(codes)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Scaling(), ValueError, "inputs or outputs must be True"),
        (lambda: Scaling(inputs=1), TypeError, "inputs must be a bool"),
        (lambda: Padding(columns=0), ValueError, "columns must be in"),
        (lambda: Padding(rows=2.0), TypeError, "rows must be an int"),
        (lambda: Padding(free=None), TypeError, "free must be a bool"),
        (lambda: Chain((Rotation(),)), ValueError, "at least two, got 1"),
        (lambda: Chain((Rotation(), 2)), TypeError, "spaces must hold spaces, got 2"),
        (lambda: Chain((Rotation(), Identity())), ValueError, "neither chains nor identities"),
        (
            lambda: Chain((Rotation(), Chain((Rotation(), Permutation())))),
            ValueError,
            "neither chains nor identities",
        ),
    ],
)
def test_bad_settings_cannot_be_made(make, error, words):
    with pytest.raises(error, match=words):
        make()


# Sizes for which every parametrization below fits every space.
FORMATS: list[Parametrization] = [
    SharedValues(num_values=5),
    UniformGrid(bits=2, group_size=4),
    Binary(),
    Ternary(group_size=4),
    Sparse(density=0.5),
    Sparse(density=0.25, per="tensor"),
    SparseNM(nonzeros=2, group_size=4),
    QuantizedNonzeros(support=Sparse(density=0.5), inner=VectorCodebook(bits=3, group_size=2)),
    VectorCodebook(bits=2, group_size=2, scale_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=2, scale_group=4),
    E8P(bits=3, scale_group=8),
    E8P(bits=4, per_tensor=True),
    QuantizedScales(inner=VectorCodebook(bits=3, group_size=2, scale_group=4), bits=2),
]
WIDE_SPACES = [
    Identity(),
    Rotation(seed=3),
    Permutation(),
    Scaling(inputs=True, outputs=True),
    Padding(rows=8, columns=16),
    Chain((Scaling(inputs=True), Rotation(block=2))),
    Chain((Padding(columns=16, free=False), Rotation(), Scaling(outputs=True))),
]


@pytest.mark.parametrize(
    ("parametrization", "space"), list(itertools.product(FORMATS, WIDE_SPACES)), ids=str
)
def test_every_parametrization_works_in_every_space(parametrization, space):
    weight, shape = gaussian(1, 6, 8), (6, 8)
    scheme = Scheme(parametrization, space)
    rep = scheme.fit(weight)
    decoded = rep.decode()
    assert decoded.shape == shape
    assert rep.scheme == scheme
    assert bool(decoded.isfinite().all())
    rep.check_codes()
    # gradients
    gradient = gaussian(2, *shape)
    values = {name: value.clone().requires_grad_() for name, value in rep.values.items()}
    live = Representation(parametrization, rep.codes, values, shape, space).decode()
    wanted = torch.autograd.grad(live, list(values.values()), gradient)
    found = rep.pull([gradient])
    assert list(found) == list(values)
    for name, value in zip(values, wanted, strict=True):
        torch.testing.assert_close(found[name], value)
    # bits
    stored = sum(stream.stored_bits for stream in rep.streams.values())
    stored += sum(64 * value.numel() for value in rep.values.values())
    assert rep.bits_per_weight() == pytest.approx(stored / 48)
    # a V step comes closer, within its trust region, and from the target nothing moves
    target = weight.flip(0)
    before = float((decoded - target).norm())
    rules = {"rounding": Nearest(), "subspace": Greedy(0.5)}
    moved = v_step(rep, target, **rules, trust_region=TrustRegion(0.2))
    change = float((rep.decode() - decoded).norm())
    if int(moved) > 1 and not couples_the_euclidean(rep):
        assert change <= 0.2 * float(decoded.norm()) * (1 + 1e-9)
    assert float((rep.decode() - target).norm()) <= before * (1 + 1e-9)
    assert int(v_step(rep, target, **rules)) >= 0
    assert float((rep.decode() - target).norm()) < before


def couples_the_euclidean(rep: Representation) -> bool:
    inside = rep.space.enter_metric(None, rep.shape, rep.owned)
    return inside is not None and inside.costs(rep.layout, rep.decode()).coupled


@pytest.mark.parametrize("space", [*WIDE_SPACES, Padding(columns=16, free=False)], ids=str)
def test_norms_that_rules_see_are_those_of_weights(space):
    """How far the weight moves if one group goes all the way, and how large the weight is."""
    rep = Scheme(VectorCodebook(bits=2, group_size=2), space).fit(gaussian(1, 6, 8))
    target = gaussian(2, 6, 8)
    rules = {"rounding": Nearest(), "options": SearchOptions(), "draws": None}
    search = DenseSearch(rep, target, None, **rules)
    decoded, goal = rep.parametrization.decode_groups(rep), rep.split(target)
    wanted = []
    for group in range(rep.layout.num_groups):
        moved = decoded.clone()
        moved[group] = goal[group]
        wanted.append((rep.merge(moved) - rep.decode()).norm())
    found = search.magnitudes[0]
    if "free=False" in str(space):  # what lies beyond the weight counts
        assert bool((found >= torch.stack(wanted) * (1 - 1e-9)).all())
    else:
        torch.testing.assert_close(found, torch.stack(wanted))
    torch.testing.assert_close(search.squared_norms[0], rep.decode().square().sum())
