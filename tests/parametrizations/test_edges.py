"""Weights at the edge: zeros, outliers, extreme sizes and dtypes, in every parametrization.

Each is fitted as well as an ordinary weight, or refused by name; and nothing is stuck: the values
and codes of what is zero can move.
"""

from __future__ import annotations

import math

import pytest
import torch
from schemes import PARAMETRIZATIONS, SPACES
from torch import Tensor, nn

from pvopt import (
    E8P,
    AllGroups,
    Binary,
    Diagonal,
    Nearest,
    Parametrization,
    QuantizedNonzeros,
    QuantizedScales,
    Representation,
    Scheme,
    Trellis,
    quantize_,
    v_step,
)

SHAPE = (8, 16)
# Without those that take as long as all others and differ from one of them in size alone.
NAMES = [n for n in PARAMETRIZATIONS if n not in ("vector-wide", "e8p-3", "nonzeros-books")]
each = pytest.mark.parametrize("name", NAMES)


def gaussian(seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed))


def zero_tensor(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight)


def zero_row(weight: Tensor) -> Tensor:
    weight[2] = 0.0
    return weight


def zero_rows(weight: Tensor) -> Tensor:
    weight[:6] = 0.0
    return weight


def zero_group(weight: Tensor) -> Tensor:
    weight[2, 8:] = 0.0
    return weight


def constant_row(weight: Tensor) -> Tensor:
    weight[2] = 0.3
    return weight


def outlier(weight: Tensor) -> Tensor:
    weight[2, 3] = 1e4
    return weight


CASES = [zero_tensor, zero_row, zero_rows, zero_group, constant_row, outlier]


def has_zero(form: Parametrization) -> bool:
    """Whether 0 is a level at any scale."""
    if isinstance(form, QuantizedScales | QuantizedNonzeros):
        return has_zero(form.inner)
    return not isinstance(form, Binary | E8P | Trellis)


def test_what_has_no_zero_says_so():
    for form in PARAMETRIZATIONS.values():
        assert form.has_zero == has_zero(form)


def relative(rep: Representation, weight: Tensor) -> float:
    error = (rep.decode().double() - weight.double()).square().sum()
    return float(error / weight.double().square().sum().clamp_min(1e-300))


@each
@pytest.mark.parametrize("case", CASES)
def test_fits_are_finite_and_as_good_as_ever(name, case):
    form, weight = PARAMETRIZATIONS[name], case(gaussian())
    if case is zero_tensor and not has_zero(form):
        with pytest.raises(ValueError, match="weight must not be all zero"):
            Scheme(form).fit(weight)
        assert not bool(form.fit(weight).decode().any())  # of a part of a weight
        return
    rep = form.fit(weight)
    assert all(bool(value.isfinite().all()) for value in rep.values.values())
    if case is zero_tensor:
        assert not bool(rep.decode().any())
    else:
        usual = relative(form.fit(gaussian()), gaussian())
        # lattice points, signs and supports have a shape of their own
        times = 3 if case in (constant_row, outlier) else 1.4
        assert relative(rep, weight) <= times * usual + 0.02
    if case in (zero_row, zero_rows) and name in ("grid", "ternary", "vector", "e8p"):
        assert not bool(rep.decode()[weight.eq(0).all(1)].any())


@each
@pytest.mark.parametrize("case", [zero_tensor, zero_row, zero_rows])
def test_what_is_zero_can_move(name, case):
    """P and V steps towards a target bring down most of the distance that a fit would."""
    form, weight, target = PARAMETRIZATIONS[name], case(gaussian()), gaussian(1)
    if case is zero_tensor and not has_zero(form):
        return
    rep, part = form.fit(weight), weight.eq(0).all(1)

    def left(found: Representation) -> float:
        return float((found.decode() - target)[part].square().sum() / target[part].square().sum())

    if "sparse" not in name:  # whose values are the weights
        assert any(bool(value.any()) for value in rep.values.values())
    for _ in range(12):
        gradients = rep.pull([rep.decode() - target])
        for key, value in rep.values.items():
            # as far as brings the squared error down most along this gradient, or nearly
            direction = gradients[key]
            moved = rep.clone()
            moved.values[key].sub_(direction, alpha=1e-3)
            change = (moved.decode() - rep.decode()).double() / 1e-3
            energy = float(change.square().sum())
            if energy > 0:
                step = -float((change * (rep.decode() - target)).sum()) / energy
                value.sub_(direction, alpha=0.5 * step)
        v_step(rep, target, rounding=Nearest(), subspace=AllGroups())
    assert bool(rep.decode().isfinite().all())
    best = left(form.fit(target))
    assert left(rep) < best + 0.75 * (1 - best)


@each
@pytest.mark.parametrize("power", [-38, 38])
def test_any_size_is_fitted_alike(name, power):
    form, weight = PARAMETRIZATIONS[name], gaussian()
    scaled = torch.ldexp(weight, torch.tensor(power))
    usual, found = form.fit(weight), form.fit(scaled)
    assert relative(found, scaled) <= 1.01 * relative(usual, weight)


@each
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (1e20, torch.float32),
        (1e20, torch.bfloat16),
        (1e-20, torch.float32),
        (1e-36, torch.bfloat16),
        (1e-40, torch.float32),
    ],
)
def test_sizes_whose_squares_are_none_are_refused_by_name(name, size, dtype):
    model = nn.ModuleDict({"layer": nn.Linear(*SHAPE[::-1], bias=False, dtype=dtype)})
    before = (size * gaussian()).to(dtype)
    model["layer"].weight.data.copy_(before)
    with pytest.raises(ValueError, match=r"cannot quantize 'layer.weight': .* largest magn"):
        quantize_(model, PARAMETRIZATIONS[name])
    assert torch.equal(model["layer"].weight.data, before)


@each
@pytest.mark.parametrize(
    ("dtype", "space"),
    [(torch.float16, "identity"), (torch.float16, "rotation"), (torch.bfloat16, "identity")],
)
def test_the_edge_of_a_dtype_stays_finite(name, dtype, space):
    form = Scheme(PARAMETRIZATIONS[name], SPACES[space])
    at_one = gaussian().clamp(-0.2, 0.2).mul(5).to(dtype)
    edge = at_one * 65000
    model = nn.Linear(*SHAPE[::-1], bias=False, dtype=dtype)
    model.weight.data.copy_(edge)
    if dtype == torch.float16 and float(form.fit(edge.float()).decode().abs().max()) > 66814:
        with pytest.raises(ValueError, match="must leave room in torch"):
            quantize_(model, form)
        return
    rep = quantize_(model, form)["weight"]
    assert bool(model.weight.isfinite().all())
    fitted = form.fit(at_one.float())
    assert relative(rep, edge) <= 1.05 * relative(fitted, at_one) + 1e-3


@each
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_any_multiple_of_a_metric_gives_the_same_fit(name, factor):
    form, weight = PARAMETRIZATIONS[name], gaussian()
    importance = 0.5 + gaussian(2).double().abs()
    power = 2.0 ** round(math.log2(factor))
    one = form.fit(weight, metric=Diagonal(importance))
    other = form.fit(weight, metric=Diagonal(importance * power))
    assert torch.equal(one.decode(), other.decode())


def test_experts_of_zero_are_no_trouble():
    model = nn.ModuleDict({"experts": nn.Module()})
    model["experts"].num_experts = 3
    weight = torch.stack([gaussian(), torch.zeros(SHAPE), gaussian(1)])
    model["experts"].up_proj = nn.Parameter(weight)
    for name in NAMES:
        weights = quantize_(model, PARAMETRIZATIONS[name])
        assert not bool(weights["experts.up_proj"].decode()[1].any())
        model["experts"].up_proj.data.copy_(weight)
