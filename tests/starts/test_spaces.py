"""Every start in every space: it works there as it would on the entered weight, and as well."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pvopt import (
    AdditiveCodebooks,
    Chain,
    Diagonal,
    Identity,
    Padding,
    Permutation,
    QuantizedNonzeros,
    Rotation,
    Row,
    Scaling,
    Scheme,
    Sparse,
    SparseNM,
    UniformGrid,
    VectorCodebook,
)
from pvopt.starts import AQLM, GPTQ, Fit, IterativeOBS, OneShotOBS

SPACES = [
    Identity(),
    Rotation(),
    Rotation(block=4, seed=3),
    Permutation(),
    Scaling(inputs=True),
    Padding(columns=16),
    Padding(rows=16, columns=16, free=False),
    Chain((Permutation(), Rotation(block=4))),
    Chain((Padding(columns=16, free=False), Rotation())),
    Chain((Scaling(inputs=True), Permutation(), Padding(columns=16))),
]
GRID = UniformGrid(bits=2, group_size=4)
BOOKS = AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4)
DENSE = [GRID, VectorCodebook(bits=4, group_size=2), BOOKS]
SPARSE = [
    Sparse(density=0.5),
    SparseNM(nonzeros=2, group_size=4),
    QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=4, group_size=4)
    ),
]


def problem(seed: int, rows: int = 8, columns: int = 24) -> tuple[torch.Tensor, Row]:
    """A float64 weight, and the metric of correlated inputs, a few of high energy."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    inputs = torch.randn(80, 6, **options) @ torch.randn(6, columns, **options)
    inputs += 0.3 * torch.randn(80, columns, **options)
    inputs *= (0.7 * torch.randn(columns, **options)).exp()
    return torch.randn(rows, columns, **options), Row(inputs.T @ inputs)


def inside(rep, weight, metric):
    """Return weight, decoded weight and metric in the space of a representation."""
    entered = rep.space.enter(weight, rep.owned)
    decoded = rep.layout.merge(rep.parametrization.decode_groups(rep))
    return entered, decoded, rep.space.enter_metric(metric, rep.shape, rep.owned)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("parametrization", DENSE, ids=str)
def test_gptq_keeps_the_outputs_closer_than_a_fit_in_every_space(space, parametrization):
    scheme, ratios = Scheme(parametrization, space), []
    for seed in range(4):
        weight, metric = problem(seed)
        errors = [
            metric.relative_error(weight, start.start(weight, scheme, metric=metric).decode())
            for start in (GPTQ(), Fit())
        ]
        ratios.append(errors[0] / errors[1])
    assert max(ratios) <= 1
    assert np.mean(ratios) < 0.9


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("parametrization", [GRID, BOOKS], ids=str)
def test_no_round_of_aqlm_raises_the_error_in_any_space(space, parametrization):
    weight, metric = problem(5)
    scheme = Scheme(parametrization, space)
    starts = [GPTQ(), *(AQLM(max_rounds=rounds, tolerance=0.0) for rounds in (1, 2, 3))]
    errors = []
    for start in starts:
        rep = start.start(weight, scheme, metric=metric)
        entered, decoded, own = inside(rep, weight, metric)
        errors.append(float(own.damped(AQLM().damping).squared_norm(entered - decoded)))
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("parametrization", SPARSE, ids=str)
def test_obs_in_every_space_is_better_the_more_it_looks(space, parametrization):
    scheme, ratios = Scheme(parametrization, space), []
    for seed in range(4):
        weight, metric = problem(seed)
        errors = []
        for start in (Fit(), OneShotOBS(), IterativeOBS()):
            rep = start.start(weight, scheme, metric=metric)
            rep.check_codes()
            errors.append(metric.relative_error(weight, rep.decode()))
        ratios.append([errors[1] / errors[0], errors[2] / errors[0]])
    assert np.max(ratios) <= 1
    assert np.mean(ratios, axis=0)[1] < 0.9


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("start", [OneShotOBS(), IterativeOBS()], ids=str)
def test_obs_leaves_a_least_squares_point_of_the_space(space, start):
    """The gradient of the error, in the space, is zero at every nonzero."""
    weight, metric = problem(6)
    rep = start.start(weight, Scheme(SPARSE[0], space), metric=metric)
    entered, decoded, own = inside(rep, weight, metric)
    hessian = own.damped(start.damping).hessian
    gradient = (entered - decoded) @ hessian
    assert float(gradient[decoded != 0].abs().max()) < 1e-8 * float((entered @ hessian).abs().max())


@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize(
    "parametrization", [GRID, UniformGrid(bits=3, group_size=8, symmetric=True), BOOKS], ids=str
)
def test_a_permutation_is_activation_order_with_its_grouping(parametrization, activation_order):
    """Columns of like energy share a scale: the weight is sorted by hand, and sorted back."""
    weight, metric = problem(7)
    start = GPTQ(activation_order=activation_order)
    rep = start.start(weight, Scheme(parametrization, Permutation()), metric=metric)
    hessian = metric.hessian.numpy()
    order = np.argsort(-np.diag(hessian), kind="stable")
    by_hand = start.start(
        weight[:, order], parametrization, metric=Row(torch.from_numpy(hessian[order][:, order]))
    )
    expected = np.empty(weight.shape)
    expected[:, order] = by_hand.decode().numpy()
    assert (rep.decode().numpy() == expected).all()
    assert (rep.codes["space.order"].numpy() == order).all()
    for name, codes in by_hand.codes.items():
        assert torch.equal(rep.codes[name], codes)


def test_sorted_inputs_share_scales_better():
    """What activation order's grouping is for: inputs of high energy with scales of their own."""
    ratios = []
    for seed in range(8):
        weight, metric = problem(seed, columns=32)
        errors = [
            metric.relative_error(weight, GPTQ().start(weight, scheme, metric=metric).decode())
            for scheme in (Scheme(GRID, Permutation()), Scheme(GRID))
        ]
        ratios.append(errors[0] / errors[1])
    assert np.mean(ratios) < 0.95


@pytest.mark.parametrize("start", [Fit(weighted=True), GPTQ(), AQLM(max_rounds=1)], ids=str)
def test_a_rotation_is_the_same_problem_between_orthogonal_matrices(start):
    weight, metric = problem(8)
    space, matrix = Rotation(seed=4), metric.hessian
    right = space.rotate(torch.eye(24, dtype=torch.float64), 1)  # x -> x V'
    left = space.rotate(torch.eye(8, dtype=torch.float64), 0)
    rotated = right.T @ matrix @ right
    by_hand = start.start(
        left.T @ weight @ right, BOOKS, metric=Row((rotated + rotated.T) / 2)
    ).decode()
    rep = start.start(weight, Scheme(BOOKS, space), metric=metric)
    torch.testing.assert_close(rep.decode(), left @ by_hand @ right.T)


def test_a_fit_without_data_is_that_of_the_scheme_whatever_the_metric():
    weight, metric = problem(9)
    for space in SPACES:
        scheme = Scheme(BOOKS, space)
        expected = scheme.fit(weight).decode()
        assert torch.equal(Fit().start(weight, scheme, metric=metric).decode(), expected)


def test_a_parametrization_is_a_scheme_in_the_weights_own_space():
    weight, metric = problem(10)
    expected = GPTQ().start(weight, Scheme(GRID), metric=metric)
    assert torch.equal(GPTQ().start(weight, GRID, metric=metric).decode(), expected.decode())


def test_metrics_that_a_space_cannot_take_are_refused_by_name():
    weight, metric = problem(11)
    with pytest.raises(TypeError, match="takes no scales of rows"):
        GPTQ().start(weight, Scheme(GRID, Scaling(outputs=True)), metric=metric)
    with pytest.raises(TypeError, match="takes no diagonal metric that differs between rows"):
        Fit(weighted=True).start(
            weight, Scheme(GRID, Rotation()), metric=Diagonal(torch.ones(8, 24))
        )
    with pytest.raises(ValueError, match="group_size=5 does not divide the 24 columns"):
        GPTQ().start(weight, UniformGrid(bits=2, group_size=5), metric=metric)


def test_float32_hessians_are_as_good_as_their_precision():
    """They enter a space in float64: a rotation adds no noise to a singular one."""
    weight, metric = problem(12)
    scheme = Scheme(GRID, Rotation())
    expected = GPTQ().start(weight, scheme, metric=metric).decode()
    single = GPTQ().start(weight, scheme, metric=Row(metric.hessian.float())).decode()
    assert (metric.relative_error(weight, single) - metric.relative_error(weight, expected)) < 0.02
