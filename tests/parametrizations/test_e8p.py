"""E8P against enumeration, and its fit against known distortions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import candidates
from torch import Tensor

from pvopt import E8P, Diagonal, FitOptions, Representation
from pvopt_kernels import e8_ball, e8p_decode

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=15, deadline=None, derandomize=True)
DOUBLE = torch.float64
RATIOS = {3: 1.75, 4: 3.6}
EVERY = torch.cartesian_prod(torch.arange(256), torch.arange(256))


@pytest.fixture(scope="module")
def table() -> Tensor:
    """All 2^16 points; point ``256 a + b`` has the codes ``(a, b)``."""
    return e8p_decode(EVERY, DOUBLE)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def random_rep(p: E8P, seed: int, shape: tuple[int, ...] = (4, 16)) -> Representation:
    generator = torch.Generator().manual_seed(seed)
    layout = p.layout(shape)
    codes = torch.randint(256, (layout.rows, layout.cols, p.bits), generator=generator)
    size = p.value_shapes(shape)["scales"]
    scales = torch.randn(size, generator=generator, dtype=DOUBLE)
    if seed % 3 == 0:
        scales.view(-1)[0] = 0.0
    return Representation(p, {"points": codes.to(torch.uint8)}, {"scales": scales}, shape)


@some
@given(seed=SEEDS, bits=st.sampled_from([2, 3, 4]), per=st.sampled_from(["row", "group", "all"]))
def test_decode_equals_the_formula(table, seed, bits, per):
    p = E8P(bits=bits, scale_group=8 if per == "group" else None, per_tensor=per == "all")
    rep = random_rep(p, seed)
    found, scales = rep.decode(), rep.values["scales"]
    for i, j in itertools.product(range(4), range(2)):
        a, b, *rest = rep.codes["points"][i, j].tolist()
        point = table[256 * a + b].clone()
        if bits == 3:
            point += e8_ball()[rest[0]] / RATIOS[3]
        if bits == 4:
            point += table[256 * rest[0] + rest[1]] / RATIOS[4]
        scale = {"row": scales[i % len(scales), 0], "group": scales[i % len(scales), -1]}
        scale = scales[i, j] if per == "group" else scale["row"] if per == "row" else scales[0, 0]
        torch.testing.assert_close(found[i, 8 * j : 8 * j + 8], scale * point)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gradients_equal_finite_differences(bits):
    rep = random_rep(E8P(bits=bits, scale_group=8), 5)
    gradient = gaussian(6, 4, 16)
    found = rep.pull([gradient])["scales"]
    expected, value = torch.empty_like(found), rep.values["scales"]
    for i in range(value.numel()):
        start, ends = value.view(-1)[i].item(), []
        for moved in (start + 1e-3, start - 1e-3):  # exact: decode is linear in a scale
            value.view(-1)[i] = moved
            ends.append(float((gradient * rep.decode()).sum()))
        value.view(-1)[i] = start
        expected.view(-1)[i] = (ends[0] - ends[1]) / 2e-3
    torch.testing.assert_close(found, expected)

    def decode(scales: Tensor) -> Tensor:
        return Representation(rep.parametrization, rep.codes, {"scales": scales}, (4, 16)).decode()

    assert torch.autograd.gradcheck(decode, value.clone().requires_grad_())


@some
@given(
    seed=SEEDS,
    k=st.sampled_from([1, 2, 5]),
    grid=st.booleans(),
    with_metric=st.booleans(),
)
def test_two_bits_are_exact(table, seed, k, grid, with_metric):
    """The V step finds a code of the same error as a scan of all 2^16, also where many tie."""
    rep = random_rep(E8P(bits=2), seed)
    target = 2 * gaussian(seed, 8, 8)
    if grid:  # multiples of a quarter in units of the scale: ties between signs and shifts
        rep.values["scales"].copy_(torch.tensor([[0.5], [-1.0], [2.0], [1.0]]))
        target = (4 * target).round() / 4
    metric = gaussian(seed + 1, 8, 8).square() if with_metric else None
    found = candidates(rep, target, None, k, metric=metric)
    scales = rep.values["scales"].repeat_interleave(2)
    for g in range(8):
        squares = (scales[g] * table - target[g]).square()
        errors = (squares if metric is None else squares * metric[g]).sum(1)
        wanted = errors.topk(k, largest=False).values
        torch.testing.assert_close(found.errors[g], wanted, rtol=1e-9, atol=1e-9)
        assert len({tuple(code) for code in found.codes[g].tolist()}) == k


def every_error(table: Tensor, target: Tensor, bits: int) -> Tensor:
    """Least error over all sums of two points, by scanning the first and then the second stage."""
    second = e8_ball() if bits == 3 else table
    best = torch.tensor(math.inf, dtype=DOUBLE)
    for first in table.split(1 << 12):
        residual = target - first
        distances = torch.cdist(residual, second / RATIOS[bits]).square()
        best = torch.minimum(best, distances.min())
    return best


def test_three_bits_come_close_to_the_best_of_all(table):
    """The beam is not exact: what is claimed is what is measured here."""
    rep = Representation(
        E8P(bits=3),
        {"points": torch.zeros(1, 6, 3, dtype=torch.uint8)},
        {"scales": torch.ones(1, 1, dtype=DOUBLE)},
        (1, 48),
    )
    target = gaussian(0, 6, 8)
    best = torch.stack([every_error(table, t, 3) for t in target])
    means = []
    for beam in (1, 4, 64):
        found = candidates(rep, target, beam=beam).errors[:, 0]
        assert bool((found >= best - 1e-9).all())
        means.append(float(found.mean() / best.mean()))
    assert means[0] > means[1] >= means[2]
    assert means[1] < 1.05
    assert means[2] == pytest.approx(1.0)


@pytest.mark.parametrize("bits", [3, 4])
@some
@given(seed=SEEDS)
def test_a_search_returns_distinct_codes_in_order_and_never_loses(bits, seed):
    rep = random_rep(E8P(bits=bits), seed)
    target = gaussian(seed, 8, 8)
    p = rep.parametrization
    before = (p.decode_groups(rep) - target).square().sum(1)
    assert bool((candidates(rep, target, beam=2).errors[:, 0] <= before).all())
    found = candidates(rep, target, None, 6, beam=2)
    assert bool((found.errors.diff(dim=1) >= 0).all())
    for row in found.codes.tolist():
        assert len({tuple(code) for code in row}) == 6


@pytest.mark.parametrize("bits", [3, 4])
def test_the_search_obeys_a_metric(bits):
    rep = random_rep(E8P(bits=bits), 1)
    rep.values["scales"].fill_(1.0)
    target, metric = gaussian(2, 8, 8), gaussian(3, 8, 8).square().square()
    p = rep.parametrization
    found = candidates(rep, target, None, 2, metric=metric)
    decoded = p.decode_groups(rep, None, found.codes[:, 0])
    torch.testing.assert_close(((decoded - target).square() * metric).sum(1), found.errors[:, 0])
    plain = p.decode_groups(rep, None, candidates(rep, target, None, 2).codes[:, 0])
    assert float(found.errors[:, 0].sum()) < 0.9 * float(((plain - target).square() * metric).sum())
    # the second stage alone, the first being given, is the best of its points in the metric
    first = e8p_decode(found.codes[:, 0, :2], DOUBLE)
    points = e8_ball() if bits == 3 else e8p_decode(EVERY, DOUBLE)
    residual = target - first
    for g in range(8):
        errors = ((residual[g] - points / RATIOS[bits]).square() * metric[g]).sum(1)
        torch.testing.assert_close(errors.min(), found.errors[g, 0])


def test_more_candidates_than_a_beam_has():
    rep = random_rep(E8P(bits=3), 1)
    found = candidates(rep, gaussian(4, 8, 8), None, 300, beam=1)
    assert bool(found.errors.isfinite().all())
    assert len({tuple(code) for code in found.codes[0].tolist()}) == 300


@pytest.mark.parametrize(("bits", "low", "high"), [(2, 0.087, 0.097), (3, 0.026, 0.031)])
def test_distortion_of_gaussian_weights(bits, low, high):
    """The rate-distortion bound is 4^-bits: 0.0625 and 0.0156."""
    weight = gaussian(1, 32, 256).float()
    rep = E8P(bits=bits, per_tensor=True).fit(weight)
    relative = float((rep.decode() - weight).square().sum() / weight.square().sum())
    assert low < relative < high


def test_distortion_of_gaussian_weights_with_four_bits():
    weight = gaussian(2, 16, 256).float()
    rep = E8P(bits=4, per_tensor=True).fit(weight)
    relative = float((rep.decode() - weight).square().sum() / weight.square().sum())
    assert 0.0039 < relative < 0.0082


@pytest.mark.parametrize("with_metric", [False, True])
def test_rounds_of_the_fit_lower_the_error_or_leave_it(with_metric):
    weight = gaussian(3, 8, 32) ** 3
    metric = gaussian(4, 8, 32).square() if with_metric else None
    weights = None if metric is None else Diagonal(metric)
    errors = []
    for rounds in range(4):
        options = FitOptions(iterations=rounds)
        rep = E8P(bits=2).fit(weight, metric=weights, options=options)
        squares = (rep.decode() - weight).square()
        errors.append(float((squares if metric is None else squares * metric).sum()))
    assert all(b <= a for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize(
    ("p", "bits"),
    [
        (E8P(bits=2), 2 + 16 / 512),
        (E8P(bits=3, scale_group=64), 3 + 16 / 64),
        (E8P(bits=4, per_tensor=True), 4 + 16 / (512 * 64)),
    ],
    ids=str,
)
def test_true_bits(p, bits):
    assert p.bits_per_weight((64, 512)) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"bits": 1}, ValueError, r"bits must be in 2..4, got 1"),
        ({"bits": 2.0}, TypeError, "bits must be an int"),
        ({"scale_group": 12}, ValueError, "scale_group must be a multiple of the group size=8"),
        ({"per_tensor": 1}, TypeError, "per_tensor must be a bool, got 1"),
        ({"scale_group": 8, "per_tensor": True}, ValueError, "scale_group must be None with"),
    ],
)
def test_bad_settings_cannot_be_made(arguments, error, words):
    with pytest.raises(error, match=words):
        E8P(**arguments)


def test_columns_that_8_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="the group size of E8P=8 does not divide the 12 columns"):
        E8P().fit(torch.ones(4, 12))
    with pytest.raises(ValueError, match="scale_group=16 does not divide the 24 columns"):
        E8P(scale_group=16).fit(torch.ones(4, 24))
