"""Constants against eigenvalues of explicit Hessians, and quotients against a NumPy path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev

from pvopt import QuantizedWeights, UniformGrid, VectorCodebook, quantize_
from pvopt.convex import random_logistic, restricted_smoothness
from pvopt.smoothness import SmoothnessSettings, estimate_smoothness
from pvopt.smoothness.subspaces import NestedSubspaces

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
EXACT = SmoothnessSettings(
    fractions=FRACTIONS, estimators=("power",), path_steps=2, iterations=3000, tolerance=1e-13
)
SEEDS = st.integers(0, 10**6)


def found_by(estimates, estimator):
    return np.array([e.constants[0] for e in estimates if e.estimator == estimator])


def indices(masks):
    return np.flatnonzero(torch.cat([m.flatten() for m in masks]).numpy())


def flat_hessian(model, loss_of_parameters):
    """Return the Hessian over all parameters as one matrix, by torch.func."""
    named = dict(model.named_parameters())
    point = torch.cat([p.detach().flatten() for p in named.values()])

    def at(flat):
        parts = flat.split([p.numel() for p in named.values()])
        return loss_of_parameters(
            {n: part.view_as(p) for (n, p), part in zip(named.items(), parts, strict=True)}
        )

    return jacrev(jacrev(at))(point).numpy()  # hessian() warns of a deprecated compiler


def quotient_path(problem, start, subset, steps):
    """Walk the path of all coordinates in NumPy; return the quotients of gradient steps in S."""
    point, constants, path_l, own_l = start.copy(), [], None, None
    for _ in range(steps):
        gradient = problem.gradient(point)
        own = np.zeros_like(gradient)
        own[subset] = gradient[subset]
        own_l = np.linalg.norm((problem.A @ own)[subset]) / np.linalg.norm(own)
        constants.append(own_l)
        quotient = np.linalg.norm(problem.A @ gradient) / np.linalg.norm(gradient)
        point = point - gradient / (path_l or quotient)
        path_l = quotient
    return constants


@settings(max_examples=6, deadline=None)
@given(seed=SEEDS)
def test_power_iteration_finds_the_largest_eigenvalue_of_the_block(make_quadratic, subsets, seed):
    problem, model, loss = make_quadratic(seed)
    chosen = [indices(masks) for masks in subsets(model, FRACTIONS, seed)]
    for s in chosen:
        top = np.linalg.eigvalsh(problem.A[np.ix_(s, s)])[::-1]
        assume(len(top) == 1 or top[1] < 0.9 * top[0])  # else the iteration takes for ever
    rng = torch.Generator().manual_seed(seed)
    found = found_by(
        estimate_smoothness(model, loss, settings=EXACT, generator=rng), "power"
    )  # [fractions, steps]
    true = [float(restricted_smoothness(problem.curvature, s)) for s in chosen]
    np.testing.assert_allclose(found, np.repeat(np.array(true)[:, None], 2, 1), rtol=1e-6)
    assert (np.diff(found, axis=0) >= -1e-9 * found[1:]).all()  # monotone in S


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_quotients_are_those_of_gradient_steps_and_below_the_constant(
    make_quadratic, subsets, seed
):
    problem, model, loss = make_quadratic(seed, condition=10.0)
    start = model.x.detach().numpy().copy()
    chosen = [indices(masks) for masks in subsets(model, FRACTIONS, seed)]
    rng = torch.Generator().manual_seed(seed)
    plan = SmoothnessSettings(fractions=FRACTIONS, estimators=("quotient",))
    found = found_by(estimate_smoothness(model, loss, settings=plan, generator=rng), "quotient")
    for own, s in zip(found, chosen, strict=True):
        np.testing.assert_allclose(own, quotient_path(problem, start, s, 3), rtol=1e-4)
        block = np.linalg.eigvalsh(problem.A[np.ix_(s, s)])
        assert (own <= block[-1] * (1 + 1e-6)).all()
        assert (own >= block[0] * (1 - 1e-6)).all()


def test_few_iterations_stay_below_and_grow_with_more(make_quadratic):
    problem, model, loss = make_quadratic(5)
    values = []
    for iterations in (2, 3, 5, 9, 400):
        plan = SmoothnessSettings(
            fractions=(1.0,),
            estimators=("power",),
            path_steps=1,
            iterations=iterations,
            tolerance=0,
        )
        rng = torch.Generator().manual_seed(0)
        values.append(estimate_smoothness(model, loss, settings=plan, generator=rng)[0].constant)
    assert (np.diff(values) >= -1e-12).all()
    assert values[0] < values[-1] <= problem.smoothness * (1 + 1e-12)
    assert values[-1] == pytest.approx(problem.smoothness, rel=1e-9)


def test_downward_curvature_counts_and_opposite_eigenvalues_do_not_confuse(generator):
    model = nn.Linear(3, 1, bias=False).double()
    bend = torch.tensor([3.0, -3.0, 1.0], dtype=torch.float64)
    found = estimate_smoothness(
        model,
        lambda m: 0.5 * (bend * m.weight**2).sum(),
        settings=SmoothnessSettings(fractions=(1.0,), path_steps=1, iterations=100, tolerance=0),
        generator=generator,
    )
    assert found[1].constant == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_local_curvature_of_logistic_regression_is_below_its_bound(subsets, seed):
    problem = random_logistic(30, 6, 10.0, 0.1, np.random.default_rng(seed))
    torch.manual_seed(seed)
    model = nn.Linear(6, 1, bias=False).double()
    inputs, signs = torch.tensor(problem.X), torch.tensor(problem.y)

    def loss(m):
        margins = signs * (inputs @ m.weight[0])
        return nn.functional.softplus(-margins).mean() + problem.l2 / 2 * m.weight.square().sum()

    point = model.weight.detach().numpy()[0]
    assert loss(model).item() == pytest.approx(float(problem.value(point)), rel=1e-12)
    plan = SmoothnessSettings(fractions=(0.5, 1.0), path_steps=1, iterations=3000, tolerance=1e-14)
    rng = torch.Generator().manual_seed(seed)
    found = found_by(estimate_smoothness(model, loss, settings=plan, generator=rng), "power")
    for own, masks in zip(found, subsets(model, (0.5, 1.0), seed), strict=True):
        s = indices(masks)
        block = problem.hessian(point)[np.ix_(s, s)]
        assert own[0] == pytest.approx(np.linalg.eigvalsh(block)[-1], rel=1e-6)
        assert own[0] <= restricted_smoothness(problem.curvature, s) * (1 + 1e-12)


@pytest.fixture
def network():
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    inputs, targets = torch.randn(20, 4).double(), torch.randn(20, 2).double()

    def loss_of(parameters):
        return (functional_call(model, parameters, inputs) - targets).square().mean()

    def loss(m):
        return (m(inputs) - targets).square().mean()

    return model, loss, loss_of


def test_network_agrees_with_its_explicit_hessian_along_the_path(network, subsets):
    model, loss, loss_of = network
    visited = []

    def spying(m):
        visited.append([p.detach().clone() for p in m.parameters()])
        return loss(m)

    plan = SmoothnessSettings(
        fractions=FRACTIONS, estimators=("power",), path_steps=2, iterations=5000, tolerance=1e-13
    )
    rng = torch.Generator().manual_seed(11)
    found = found_by(estimate_smoothness(model, spying, settings=plan, generator=rng), "power")
    first, second = visited[0], visited[-1]  # the last evaluation is at the second point
    assert not torch.equal(first[0], second[0])
    for step, point in enumerate((first, second)):
        with torch.no_grad():
            for p, x in zip(model.parameters(), point, strict=True):
                p.copy_(x)
        matrix = flat_hessian(model, loss_of)
        for own, masks in zip(found, subsets(model, FRACTIONS, 11), strict=True):
            s = indices(masks)
            true = np.abs(np.linalg.eigvalsh(matrix[np.ix_(s, s)])).max()
            assert own[step] == pytest.approx(true, rel=1e-6)
    with torch.no_grad():  # and the path goes down
        for p, x in zip(model.parameters(), first, strict=True):
            p.copy_(x)
        before = loss(model)
        for p, x in zip(model.parameters(), second, strict=True):
            p.copy_(x)
        assert loss(model) < before


def test_chosen_parameters_alone_are_variables(network):
    model, loss, loss_of = network
    weight = model[2].weight
    plan = SmoothnessSettings(fractions=(1.0,), path_steps=1, iterations=5000, tolerance=1e-13)
    found = estimate_smoothness(
        model, loss, [weight], plan, generator=torch.Generator().manual_seed(0)
    )
    matrix = flat_hessian(model, loss_of)
    begin = sum(p.numel() for p in list(model.parameters())[:2])
    block = matrix[begin : begin + weight.numel(), begin : begin + weight.numel()]
    assert found[1].constant == pytest.approx(np.abs(np.linalg.eigvalsh(block)).max(), rel=1e-6)


def test_groups_of_representations_are_drawn_whole(network):
    model, loss, loss_of = network
    weights = quantize_(model, VectorCodebook(bits=2, group_size=2))
    plan = SmoothnessSettings(
        fractions=(0.3, 1.0), units="groups", path_steps=1, iterations=5000, tolerance=1e-13
    )
    found = estimate_smoothness(
        model, loss, weights, plan, generator=torch.Generator().manual_seed(2)
    )
    layouts = [rep.layout for rep in weights.values()]
    chosen = NestedSubspaces(
        weights.parameters(), (0.3, 1.0), layouts, torch.Generator().manual_seed(2)
    ).masks(0)
    for mask, layout in zip(chosen, layouts, strict=True):
        split = layout.split(mask)
        assert torch.equal(split.any(1), split.all(1))
        assert int(split.all(1).sum()) == -(-3 * layout.num_groups // 10)
    matrix, everything = flat_hessian(model, loss_of), []
    for name, parameter in model.named_parameters():
        quantized = name in weights
        everything.append(
            chosen[list(weights).index(name)] if quantized else torch.zeros_like(parameter) > 0
        )
    s = indices(everything)
    true = np.abs(np.linalg.eigvalsh(matrix[np.ix_(s, s)])).max()
    assert found[2].fraction == 0.3
    assert found[2].constant == pytest.approx(true, rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    seed=SEEDS,
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    fractions=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5, unique=True),
)
def test_subsets_are_nested_and_of_the_size_asked_for(seed, sizes, fractions):
    fractions = tuple(sorted(fractions))
    parameters = [torch.zeros(n) for n in sizes]
    found = NestedSubspaces(parameters, fractions, None, torch.Generator().manual_seed(seed))
    for number, fraction in enumerate(fractions):
        for n, mask in zip(sizes, found.masks(number), strict=True):
            assert int(mask.sum()) == max(1, min(n, int(np.ceil(round(fraction * n, 6)))))
        if number:
            for small, large in zip(found.masks(number - 1), found.masks(number), strict=True):
                assert bool((small <= large).all())
        kept = found.project_([torch.ones(n) for n in sizes], number)
        for mask, vector in zip(found.masks(number), kept, strict=True):
            assert torch.equal(mask.float(), vector)


def test_draws_differ_repeat_with_the_seed_and_keep_the_order_of_the_settings(make_quadratic):
    _, model, loss = make_quadratic(1)
    plan = SmoothnessSettings(
        fractions=(1.0, 0.25), estimators=("power", "quotient"), draws=3, path_steps=2
    )
    calls = []
    runs = [
        estimate_smoothness(
            model,
            loss,
            settings=plan,
            generator=torch.Generator().manual_seed(0),
            progress=lambda done, total: calls.append((done, total)),
        )
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert calls[:24] == [(n + 1, 24) for n in range(24)]
    places = [(e.estimator, e.fraction) for e in runs[0]]
    assert places == [("power", 1.0), ("power", 0.25), ("quotient", 1.0), ("quotient", 0.25)]
    small = runs[0][1].constants
    assert len(small) == 3
    assert all(len(draw) == 2 for draw in small)
    assert len({draw[0] for draw in small}) > 1
    assert runs[0][1].constant == max(max(draw) for draw in small)


def test_a_loss_without_curvature_has_the_constant_zero(generator):
    model = nn.Linear(3, 1, bias=False)
    found = estimate_smoothness(
        model,
        lambda m: m.weight.sum(),
        settings=SmoothnessSettings(fractions=(0.5, 1.0)),
        generator=generator,
    )
    assert [e.constant for e in found] == [0.0] * 4


def test_weights_that_the_loss_does_not_use_have_no_curvature(generator):
    model = nn.Linear(2, 2).double()
    found = estimate_smoothness(
        model,
        lambda m: m.weight.square().sum(),
        settings=SmoothnessSettings(fractions=(1.0,), path_steps=1),
        generator=generator,
    )
    assert [e.constant for e in found] == pytest.approx([2.0, 2.0], rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": ()}, "fractions must be"),
        ({"fractions": (0.0, 1.0)}, "fractions must be"),
        ({"fractions": (0.5, 0.5)}, "fractions must be"),
        ({"fractions": (float("nan"),)}, "fractions must be"),
        ({"fractions": tuple(np.linspace(0.001, 1, 256))}, "at most 255"),
        ({"estimators": ("lanczos",)}, "estimators must be"),
        ({"estimators": ()}, "estimators must be"),
        ({"path_steps": 0}, "path_steps must be"),
        ({"draws": 0}, "draws must be"),
        ({"iterations": 1}, "iterations must be"),
        ({"tolerance": -1.0}, "tolerance must"),
        ({"tolerance": float("nan")}, "tolerance must"),
        ({"probe": 0.0}, "probe must be"),
        ({"units": "layers"}, "units must be"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SmoothnessSettings(**change)


@pytest.mark.parametrize(
    ("parameters", "units", "error", "message"),
    [
        (lambda m: [], "coordinates", ValueError, "at least one"),
        (lambda m: [m.weight, m.weight], "coordinates", ValueError, "distinct"),
        (lambda m: [nn.Parameter(torch.zeros(2))], "coordinates", ValueError, "not a parameter of"),
        (lambda m: [torch.zeros(2)], "coordinates", TypeError, "nn.Parameter"),
        (lambda m: [m.bias.requires_grad_(False)], "coordinates", ValueError, "require a gradient"),
        (lambda m: m.bfloat16().parameters(), "coordinates", TypeError, "float32 or float64"),
        (lambda m: m.parameters(), "groups", ValueError, "QuantizedWeights"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(generator, parameters, units, error, message):
    model = nn.Linear(2, 2)
    with pytest.raises(error, match=message):
        estimate_smoothness(
            model,
            lambda m: m.weight.square().sum(),
            parameters(model),
            SmoothnessSettings(units=units),
            generator=generator,
        )


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda m: m.weight, TypeError, "scalar"),
        (lambda m: 1.0, TypeError, "scalar"),
        (lambda m: m.weight.detach().sum(), ValueError, "no gradient"),
        (lambda m: m.weight.sum() * float("nan"), ValueError, "finite"),
        (lambda m: (m.weight - m.weight.detach()).abs().sqrt().sum(), ValueError, "finite"),
    ],
)
def test_losses_that_do_not_fit_are_refused(generator, loss, error, message):
    with pytest.raises(error, match=message):
        estimate_smoothness(nn.Linear(2, 2), loss, generator=generator)


def test_steps_lost_in_rounding_are_refused(generator):
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e8, 1e-3]]))
    with pytest.raises(ValueError, match="rounding"):
        estimate_smoothness(
            model,
            lambda m: (m.weight * torch.tensor([1.0, 0.0])).sum() ** 2,
            settings=SmoothnessSettings(fractions=(1.0,), probe=1e-9),
            generator=generator,
        )


def test_quantized_weights_may_also_be_drawn_by_coordinates(network):
    model, loss, _ = network
    weights = quantize_(model, UniformGrid(bits=3))
    assert isinstance(weights, QuantizedWeights)
    plan = SmoothnessSettings(fractions=(1.0,), estimators=("quotient",), path_steps=1)
    by = [
        estimate_smoothness(
            model, loss, variables, plan, generator=torch.Generator().manual_seed(0)
        )
        for variables in (weights, weights.parameters())
    ]
    assert by[0] == by[1]
