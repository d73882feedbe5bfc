"""The V step's search against enumeration of every code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt import (
    AdditiveCodebooks,
    AllGroups,
    Binary,
    BlockMetric,
    Greedy,
    Nearest,
    Parametrization,
    Representation,
    SharedValues,
    Ternary,
    TrustRegion,
    UniformGrid,
    VectorCodebook,
    v_step,
)
from pvopt.parametrizations import contract as base

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=15, deadline=None, derandomize=True)
DOUBLE = torch.float64


def brute_errors(
    rep: Representation, target: Tensor, groups: Tensor, codes: Tensor, metric: Tensor | None
) -> Tensor:
    """Errors ``[n, N]`` of every code, measured one by one."""
    columns = []
    for code in codes:
        every = code.expand(len(groups), -1)
        decoded = rep.parametrization.decode_moved(target, rep, groups, every)
        squares = (decoded - target).square()
        columns.append((squares if metric is None else squares * metric).sum(1))
    return torch.stack(columns, 1)


def draw_targets(rep: Representation, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randperm(rep.layout.num_groups, generator=generator)[:6]
    size = (len(groups), rep.layout.group_size)
    target = 2 * torch.randn(size, generator=generator, dtype=DOUBLE)
    if seed % 2:  # exact hits
        target[0] = rep.parametrization.decode_groups(rep, groups[:1])[0]
    metric = torch.rand(size, generator=generator, dtype=DOUBLE)
    if seed % 3 == 1:
        metric[0] = 0.0
    return target, groups, metric


@some
@given(seed=SEEDS, k=st.integers(1, 6), with_metric=st.booleans())
def test_candidates_are_the_k_best_codes(case, draw_rep, all_codes, seed, k, with_metric):
    rep = draw_rep(case, seed)
    target, groups, metric = draw_targets(rep, seed)
    metric = metric if with_metric else None
    p = rep.parametrization
    codes = all_codes(p, rep.shape)
    errors = brute_errors(rep, target, groups, codes, metric)
    wanted = errors.sort(1).values[:, :k]
    found = p.candidates(target, rep, groups, k, metric=metric)
    assert found.codes.shape == (len(groups), k, rep.codes.shape[-1])
    assert found.codes.dtype == torch.int64
    exist = min(k, len(codes))
    torch.testing.assert_close(found.errors[:, :exist], wanted, rtol=1e-9, atol=1e-9)
    assert bool((found.errors[:, exist:] == math.inf).all())
    # the codes have the errors stated, and are distinct
    for slot in range(exist):
        decoded = p.decode_moved(target, rep, groups, found.codes[:, slot])
        squares = (decoded - target).square() * (1.0 if metric is None else metric)
        torch.testing.assert_close(squares.sum(1), found.errors[:, slot])
    for row in found.codes[:, :exist]:
        assert len({tuple(code) for code in row.tolist()}) == exist


@some
@given(seed=SEEDS)
def test_all_groups_in_order_by_default(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    target = torch.randn(rep.layout.num_groups, rep.layout.group_size, dtype=DOUBLE)
    everything = torch.arange(rep.layout.num_groups)
    p = rep.parametrization
    for k in (1, 2):
        left = p.candidates(target, rep, None, k)
        right = p.candidates(target, rep, everything, k)
        assert torch.equal(left.codes, right.codes)
        assert torch.equal(left.errors, right.errors)


@some
@given(seed=SEEDS, k=st.integers(2, 5), metric=st.sampled_from(["none", "diagonal", "block"]))
def test_candidates_measured_at_once_or_one_after_the_other(case, draw_rep, seed, k, metric):
    """Small searches decode all candidates together, large ones slot by slot."""
    rep = draw_rep(case, seed)
    p = rep.parametrization
    size = rep.layout.num_groups, rep.layout.group_size
    source = torch.Generator().manual_seed(seed)
    target, weights = (torch.rand(size, generator=source, dtype=DOUBLE) for _ in range(2))
    inputs = torch.randn(rep.layout.in_group, rep.layout.in_group, generator=source, dtype=DOUBLE)
    kind = {"none": None, "diagonal": weights, "block": BlockMetric(inputs @ inputs.T)}[metric]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for limit in (1 << 17, 0):
            patch.setattr(base, "_AT_ONCE", limit)
            found.append(p.candidates(target, rep, None, k, metric=kind))
    torch.testing.assert_close(found[0].errors, found[1].errors, rtol=1e-12, atol=1e-12)


@some
@given(seed=SEEDS)
def test_the_current_code_stays_where_nothing_is_strictly_better(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    p = rep.parametrization
    target, groups, _ = draw_targets(rep, seed)
    current = rep.flat_codes[groups].long()
    found = p.candidates(target, rep, groups, 1)
    before = (p.decode_groups(rep, groups) - target).square().sum(1)
    moved = (found.codes[:, 0] != current).any(1)
    assert bool((found.errors[:, 0] <= before).all())
    assert bool((found.errors[moved, 0] < before[moved]).all())
    # a zero metric makes every code equally good
    zero = torch.zeros_like(target)
    found = p.candidates(target, rep, groups, 1, metric=zero)
    assert torch.equal(found.codes[:, 0], current)


@some
@given(seed=SEEDS)
def test_decoded_weights_are_a_fixed_point_of_the_v_step(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    decoded = rep.parametrization.decode_groups(rep)
    before = rep.codes.clone()
    moved = v_step(rep, rep.decode(), decoded, rounding=Nearest(), subspace=AllGroups())
    assert moved == 0
    found = rep.parametrization.candidates(decoded, rep, None)
    assert torch.equal(found.codes[:, 0], before.view(-1, before.shape[-1]).long())
    assert bool((found.errors == 0).all())


@some
@given(
    seed=SEEDS,
    fraction=st.sampled_from([0.1, 0.5, 1.0]),
    ratio=st.sampled_from([None, 0.01, 0.5]),
)
def test_a_v_step_never_moves_any_group_away_from_its_target(case, draw_rep, seed, fraction, ratio):
    rep = draw_rep(case, seed)
    target = torch.randn(rep.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    split = rep.parametrization.split
    decoded = rep.parametrization.decode_groups(rep)
    before, codes = decoded.clone(), rep.flat_codes.clone()
    moved = v_step(
        rep,
        target,
        decoded,
        rounding=Nearest(),
        subspace=Greedy(fraction),
        trust_region=None if ratio is None else TrustRegion(ratio),
    )
    torch.testing.assert_close(decoded, split(rep.decode()))
    assert (
        int((codes != rep.flat_codes).any(1).sum()) == moved <= Greedy(fraction).count(len(codes))
    )
    old = (before - split(target)).square().sum(1)
    new = (decoded - split(target)).square().sum(1)
    assert bool((new <= old + 1e-12).all())
    if ratio is not None and moved > 1:
        assert float((decoded - before).norm()) <= ratio * float(before.norm()) * (1 + 1e-12)


@some
@given(seed=SEEDS)
def test_exhaustive_beam_equals_enumeration_and_single_codebooks_are_exact(seed):
    """Keeping K^(M-1) combinations loses nothing; with M = 1 any beam is exact."""
    generator = torch.Generator().manual_seed(seed)
    for books, bits, beam in ((1, 3, 1), (2, 2, 4), (3, 1, 4), (3, 2, 16)):
        p = AdditiveCodebooks(num_codebooks=books, bits=bits, in_group=2, beam_size=beam)
        codes = torch.randint(1 << bits, (3, 2, books), generator=generator).to(torch.uint8)
        values = {
            "codebooks": torch.randn(books, 1 << bits, 2, generator=generator, dtype=DOUBLE),
            "scales": torch.rand(3, 1, generator=generator, dtype=DOUBLE) + 0.1,
        }
        rep = Representation(p, codes, values, (3, 4))
        target = torch.randn(6, 2, generator=generator, dtype=DOUBLE)
        every = torch.cartesian_prod(*[torch.arange(1 << bits)] * books).view(-1, books)
        errors = brute_errors(rep, target, torch.arange(6), every, None)
        found = p.candidates(target, rep, None, 1, generator=generator)
        torch.testing.assert_close(found.errors[:, 0], errors.amin(1), rtol=1e-9, atol=1e-12)


def random_sum(books: int, bits: int, beam: int) -> tuple[Representation, Tensor]:
    generator = torch.Generator().manual_seed(5)
    p = AdditiveCodebooks(num_codebooks=books, bits=bits, in_group=4, beam_size=beam)
    values = {
        "codebooks": torch.randn(books, 1 << bits, 4, generator=generator, dtype=DOUBLE),
        "scales": torch.ones(20, 1, dtype=DOUBLE),
    }
    codes = torch.randint(1 << bits, (20, 10, books), generator=generator).to(torch.uint8)
    target = 2 * torch.randn(200, 4, generator=generator, dtype=DOUBLE)
    return Representation(p, codes, values, (20, 40)), target


def test_a_wider_beam_is_better_on_average_and_no_beam_is_worse_than_the_current_code():
    """Guaranteed per group is only the second; a wider beam may lose single groups."""
    means = []
    for beam in (1, 4, 16, 64):
        rep, target = random_sum(3, 4, beam)
        start = (rep.layout.split(rep.decode()) - target).square().sum(1)
        source = torch.Generator().manual_seed(0)
        found = rep.parametrization.candidates(target, rep, None, 1, generator=source)
        assert bool((found.errors[:, 0] <= start).all())
        means.append(float(found.errors.mean()))
    assert means[0] > means[1] > means[2] > means[3]


def test_a_narrow_beam_still_returns_k_distinct_codes_in_order():
    rep, target = random_sum(2, 3, 1)
    found = rep.parametrization.candidates(target, rep, None, 7)
    assert bool((found.errors.diff(dim=1) >= 0).all())
    for row in found.codes:
        assert len({tuple(code) for code in row.tolist()}) == 7


def test_the_order_of_codebooks_comes_from_the_generator():
    rep, target = random_sum(3, 4, 1)
    p = rep.parametrization
    draws = [
        p.candidates(target, rep, None, 1, generator=torch.Generator().manual_seed(seed)).codes
        for seed in (0, 0, 1, 2, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert any(not torch.equal(draws[0], other) for other in draws[2:])
    state = torch.get_rng_state()
    assert torch.equal(p.candidates(target, rep, None).codes, p.candidates(target, rep, None).codes)
    assert torch.equal(state, torch.get_rng_state())


def shared(values: list[float], codes: list[int]) -> Representation:
    return Representation(
        SharedValues(num_values=len(values)),
        torch.tensor(codes, dtype=torch.uint8).view(1, -1, 1),
        {"values": torch.tensor(values, dtype=DOUBLE)},
        (1, len(codes)),
    )


def test_ties_keep_the_current_code():
    rep = shared([0.0, 2.0, 0.0, 2.0], [0, 1, 2, 3])
    target = torch.full((4, 1), 1.0, dtype=DOUBLE)  # all four at distance 1
    found = rep.parametrization.candidates(target, rep, None, 1)
    assert found.codes.flatten().tolist() == [0, 1, 2, 3]
    books = torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]], dtype=DOUBLE)
    for current in range(4):
        code = torch.tensor([[[current % 2, current // 2]]], dtype=torch.uint8)
        tied = Representation(
            AdditiveCodebooks(num_codebooks=2, bits=1, in_group=1),
            code,
            {"codebooks": books, "scales": torch.ones(1, 1, dtype=DOUBLE)},
            (1, 1),
        )
        found = tied.parametrization.candidates(torch.zeros(1, 1, dtype=DOUBLE), tied, None, 1)
        assert torch.equal(found.codes[0], code[0].long())
        four = tied.parametrization.candidates(torch.zeros(1, 1, dtype=DOUBLE), tied, None, 4)
        assert len({tuple(c) for c in four.codes[0].tolist()}) == 4
        assert bool((four.errors == 1).all())


def test_targets_of_many_chunks_are_searched_alike():
    """More targets than one chunk of the distance table holds."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1024, generator=generator)
    shape = (3, 1000)
    codes = torch.zeros(*shape, 1, dtype=torch.int32)
    rep = Representation(SharedValues(num_values=1024), codes, {"values": values}, shape)
    target = torch.randn(3000, 1, generator=generator)
    found = rep.parametrization.candidates(target, rep, None, 1)
    wanted = (target - values).square().amin(1)
    assert torch.equal(found.errors[:, 0], wanted)


@pytest.mark.parametrize("symmetric", [False, True])
def test_grid_targets_far_outside_take_the_ends(symmetric):
    p = UniformGrid(bits=2, symmetric=symmetric)
    rep = p.fit(torch.tensor([[-1.0, 0.0, 0.4, 1.0]], dtype=DOUBLE))
    ends = p.candidates(torch.tensor([[-1e5], [1e5]], dtype=DOUBLE), rep, torch.tensor([0, 1]))
    assert ends.codes.flatten().tolist() == [0, 3]


@pytest.mark.parametrize(
    "parametrization",
    [
        SharedValues(num_values=4),
        UniformGrid(bits=2, group_size=2),
        UniformGrid(bits=2, symmetric=True),
        Binary(),
        Ternary(group_size=2),
    ],
    ids=str,
)
@some
@given(seed=SEEDS)
def test_bracket_returns_the_levels_around_each_target(draw_rep, all_codes, parametrization, seed):
    """Inside the range: the neighbours below and above; outside: the outermost level twice."""
    rep = draw_rep((parametrization, (2, 4)), seed, usual=True)
    target = 2 * torch.randn(8, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    groups = torch.arange(8)
    levels = torch.stack(
        [
            parametrization.decode_groups(rep, groups, code.expand(8, 1))[:, 0]
            for code in all_codes(parametrization, rep.shape)
        ],
        1,
    )
    found = parametrization.bracket(target, rep, groups)
    assert found.codes.shape == (8, 2, 1)
    pair = torch.stack(
        [parametrization.decode_groups(rep, groups, found.codes[:, i])[:, 0] for i in (0, 1)], 1
    )
    torch.testing.assert_close(found.errors, (pair - target).square())
    for t, row, (low, high) in zip(
        target[:, 0].tolist(), levels.tolist(), pair.tolist(), strict=True
    ):
        below = [v for v in row if v <= t]
        above = [v for v in row if v >= t]
        assert low == pytest.approx(max(below) if below else min(row))
        assert high == pytest.approx(min(above) if above else max(row))


def test_bracket_of_an_exact_hit_contains_it_at_distance_zero():
    rep = shared([3.0, -1.0, 0.5], [0, 1, 2])
    found = rep.parametrization.bracket(
        torch.tensor([[3.0], [-1.0], [0.5]], dtype=DOUBLE), rep, None
    )
    assert bool((found.errors.amin(1) == 0).all())


def test_vector_codes_have_no_bracket():
    for p in (
        VectorCodebook(bits=1, group_size=2),
        AdditiveCodebooks(num_codebooks=1, bits=1, in_group=2),
    ):
        rep = p.fit(torch.randn(2, 4))
        with pytest.raises(TypeError, match=f"{type(p).__name__}.*power"):
            p.bracket(torch.zeros(1, 2), rep, None)


@pytest.mark.parametrize("k", [0, -1])
def test_k_must_be_positive(k):
    rep = shared([0.0, 1.0], [0])
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        rep.parametrization.candidates(torch.zeros(1, 1), rep, None, k)


def test_targets_of_another_dtype_are_searched_in_the_values_dtype(case, draw_rep):
    rep = draw_rep(case, 1, dtype=torch.float32)
    target = torch.randn(rep.layout.num_groups, rep.layout.group_size, dtype=torch.bfloat16)
    p: Parametrization = rep.parametrization
    found = p.candidates(target, rep, None, 2)
    exact = p.candidates(target.float(), rep, None, 2)
    assert torch.equal(found.codes, exact.codes)
    assert found.errors.dtype == torch.float32


def test_beam_size_is_a_setting_of_the_search_only():
    rep, target = random_sum(2, 3, 1)
    wide = Representation(
        replace(rep.parametrization, beam_size=64), rep.codes, rep.values, rep.shape
    )
    assert torch.equal(wide.decode(), rep.decode())
    narrow_errors = rep.parametrization.candidates(target, rep, None).errors.mean()
    assert float(wide.parametrization.candidates(target, wide, None).errors.mean()) <= float(
        narrow_errors
    )
