"""The V step's search against enumeration of every code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import ask, candidates, step
from torch import Tensor

from pvopt import (
    AdditiveCodebooks,
    AffineGrid,
    AllGroups,
    Binary,
    Block,
    Greedy,
    Nearest,
    NestedGrid,
    Representation,
    SharedValues,
    Ternary,
    TrustRegion,
    UniformGrid,
    VectorCodebook,
)
from pvopt.parametrizations import contract as base

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=6, deadline=None, derandomize=True)
DOUBLE = torch.float64


def brute_errors(
    rep: Representation, target: Tensor, groups: Tensor, codes: Tensor, metric: Tensor | None
) -> Tensor:
    """Errors ``[n, N]`` of every code."""
    each = len(codes)
    goals, numbers = target.repeat_interleave(each, 0), groups.repeat_interleave(each)
    every = codes.repeat(len(groups), 1)
    decoded = rep.parametrization.decode_moved(ask(rep, goals, numbers), every)
    squares = (decoded - goals).square().view(len(groups), each, -1)
    return (squares if metric is None else squares * metric[:, None]).sum(2)


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
    codes = all_codes(rep)
    errors = brute_errors(rep, target, groups, codes, metric)
    wanted = errors.sort(1).values[:, :k]
    found = candidates(rep, target, groups, k, metric=metric)
    assert found.codes.shape == (len(groups), k, codes.shape[1])
    assert found.codes.dtype == torch.int64
    exist = min(k, len(codes))
    torch.testing.assert_close(found.errors[:, :exist], wanted, rtol=1e-9, atol=1e-9)
    assert bool((found.errors[:, exist:] == math.inf).all())
    # the codes have the errors stated, and are distinct
    for slot in range(exist):
        decoded = p.decode_moved(ask(rep, target, groups), found.codes[:, slot])
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
    for k in (1, 2):
        left = candidates(rep, target, None, k)
        right = candidates(rep, target, everything, k)
        assert torch.equal(left.codes, right.codes)
        assert torch.equal(left.errors, right.errors)


@some
@given(seed=SEEDS, k=st.integers(2, 5), metric=st.sampled_from(["none", "diagonal", "block"]))
def test_candidates_measured_at_once_or_one_after_the_other(case, draw_rep, seed, k, metric):
    """Small searches decode all candidates together, large ones slot by slot."""
    rep = draw_rep(case, seed)
    size = rep.layout.num_groups, rep.layout.group_size
    source = torch.Generator().manual_seed(seed)
    target, weights = (torch.rand(size, generator=source, dtype=DOUBLE) for _ in range(2))
    inputs = torch.randn(rep.layout.in_group, rep.layout.in_group, generator=source, dtype=DOUBLE)
    kind = {"none": None, "diagonal": weights, "block": Block(inputs @ inputs.T)}[metric]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for limit in (1 << 17, 0):
            patch.setattr(base, "_AT_ONCE", limit)
            found.append(candidates(rep, target, None, k, metric=kind))
    torch.testing.assert_close(found[0].errors, found[1].errors, rtol=1e-12, atol=1e-12)


@some
@given(seed=SEEDS)
def test_the_current_code_stays_where_nothing_is_strictly_better(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    p = rep.parametrization
    target, groups, _ = draw_targets(rep, seed)
    current = rep.group_codes(groups).long()
    found = candidates(rep, target, groups, 1)
    before = (p.decode_groups(rep, groups) - target).square().sum(1)
    moved = (found.codes[:, 0] != current).any(1)
    assert bool((found.errors[:, 0] <= before).all())
    assert bool((found.errors[moved, 0] < before[moved]).all())
    # a zero metric makes every code equally good
    zero = torch.zeros_like(target)
    found = candidates(rep, target, groups, 1, metric=zero)
    assert torch.equal(found.codes[:, 0], current)


@some
@given(seed=SEEDS)
def test_decoded_weights_are_a_fixed_point_of_the_v_step(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    decoded = rep.parametrization.decode_groups(rep)
    before = rep.group_codes().clone()
    assert step(rep, rep.decode(), rounding=Nearest(), subspace=AllGroups()) == 0
    found = candidates(rep, decoded)
    assert torch.equal(found.codes[:, 0], before.long())
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
    goal = rep.split(target)
    before, start = rep.parametrization.decode_groups(rep), rep.decode()
    codes = rep.group_codes().clone()
    moved = step(
        rep,
        target,
        rounding=Nearest(),
        subspace=Greedy(fraction),
        trust_region=None if ratio is None else TrustRegion(ratio),
    )
    decoded = rep.split(rep.decode())
    torch.testing.assert_close(decoded, rep.parametrization.decode_groups(rep))
    changed = int((codes != rep.group_codes()).any(1).sum())
    assert changed == moved <= Greedy(fraction).count(len(codes))
    # what a difference of groups is worth in weights
    metric = rep.space.enter_metric(None, rep.shape, rep.owned)
    worth = 1.0 if metric is None else rep.layout.split(metric.diagonal(rep.inner_shape))
    old = ((before - goal).square() * worth).sum(1)
    new = ((decoded - goal).square() * worth).sum(1)
    assert bool((new <= old + 1e-12).all())
    if ratio is not None and moved > 1:
        assert float((rep.decode() - start).norm()) <= ratio * float(start.norm()) * (1 + 1e-12)


@some
@given(seed=SEEDS)
def test_exhaustive_beam_equals_enumeration_and_single_codebooks_are_exact(seed):
    """Keeping K^(M-1) combinations loses nothing; with M = 1 any beam is exact."""
    generator = torch.Generator().manual_seed(seed)
    for books, bits, beam in ((1, 3, 1), (2, 2, 4), (3, 1, 4), (3, 2, 16)):
        p = AdditiveCodebooks(num_codebooks=books, bits=bits, in_group=2)
        codes = torch.randint(1 << bits, (3, 2, books), generator=generator).to(torch.uint8)
        values = {
            "codebooks": torch.randn(books, 1 << bits, 2, generator=generator, dtype=DOUBLE),
            "scales": torch.rand(3, 1, generator=generator, dtype=DOUBLE) + 0.1,
        }
        rep = Representation(p, {"entries": codes}, values, (3, 4))
        target = torch.randn(6, 2, generator=generator, dtype=DOUBLE)
        every = torch.cartesian_prod(*[torch.arange(1 << bits)] * books).view(-1, books)
        errors = brute_errors(rep, target, torch.arange(6), every, None)
        found = candidates(rep, target, generator=generator, beam=beam)
        torch.testing.assert_close(found.errors[:, 0], errors.amin(1), rtol=1e-9, atol=1e-12)


def random_sum(books: int, bits: int) -> tuple[Representation, Tensor]:
    generator = torch.Generator().manual_seed(5)
    p = AdditiveCodebooks(num_codebooks=books, bits=bits, in_group=4)
    values = {
        "codebooks": torch.randn(books, 1 << bits, 4, generator=generator, dtype=DOUBLE),
        "scales": torch.ones(20, 1, dtype=DOUBLE),
    }
    codes = torch.randint(1 << bits, (20, 10, books), generator=generator).to(torch.uint8)
    target = 2 * torch.randn(200, 4, generator=generator, dtype=DOUBLE)
    return Representation(p, {"entries": codes}, values, (20, 40)), target


def test_a_wider_beam_is_better_on_average_and_no_beam_is_worse_than_the_current_code():
    """Guaranteed per group is only the second; a wider beam may lose single groups."""
    means = []
    for beam in (1, 4, 16, 64):
        rep, target = random_sum(3, 4)
        start = (rep.layout.split(rep.decode()) - target).square().sum(1)
        source = torch.Generator().manual_seed(0)
        found = candidates(rep, target, generator=source, beam=beam)
        assert bool((found.errors[:, 0] <= start).all())
        means.append(float(found.errors.mean()))
    assert means[0] > means[1] > means[2] > means[3]


def test_a_narrow_beam_still_returns_k_distinct_codes_in_order():
    rep, target = random_sum(2, 3)
    found = candidates(rep, target, None, 7, beam=1)
    assert bool((found.errors.diff(dim=1) >= 0).all())
    for row in found.codes:
        assert len({tuple(code) for code in row.tolist()}) == 7


def test_the_order_of_codebooks_comes_from_the_generator():
    rep, target = random_sum(3, 4)
    draws = [
        candidates(rep, target, generator=torch.Generator().manual_seed(seed), beam=1).codes
        for seed in (0, 0, 1, 2, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert any(not torch.equal(draws[0], other) for other in draws[2:])
    state = torch.get_rng_state()
    assert torch.equal(candidates(rep, target).codes, candidates(rep, target).codes)
    assert torch.equal(state, torch.get_rng_state())


def shared(values: list[float], codes: list[int]) -> Representation:
    return Representation(
        SharedValues(num_values=len(values)),
        {"entries": torch.tensor(codes, dtype=torch.uint8).view(1, -1, 1)},
        {"values": torch.tensor(values, dtype=DOUBLE)},
        (1, len(codes)),
    )


def test_ties_keep_the_current_code():
    rep = shared([0.0, 2.0, 0.0, 2.0], [0, 1, 2, 3])
    target = torch.full((4, 1), 1.0, dtype=DOUBLE)  # all four at distance 1
    found = candidates(rep, target, None, 1)
    assert found.codes.flatten().tolist() == [0, 1, 2, 3]
    books = torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]], dtype=DOUBLE)
    for current in range(4):
        code = torch.tensor([[[current % 2, current // 2]]], dtype=torch.uint8)
        tied = Representation(
            AdditiveCodebooks(num_codebooks=2, bits=1, in_group=1),
            {"entries": code},
            {"codebooks": books, "scales": torch.ones(1, 1, dtype=DOUBLE)},
            (1, 1),
        )
        found = candidates(tied, torch.zeros(1, 1, dtype=DOUBLE))
        assert torch.equal(found.codes[0], code[0].long())
        four = candidates(tied, torch.zeros(1, 1, dtype=DOUBLE), None, 4)
        assert len({tuple(c) for c in four.codes[0].tolist()}) == 4
        assert bool((four.errors == 1).all())


def test_targets_of_many_chunks_are_searched_alike():
    """More targets than one chunk of the distance table holds."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1024, generator=generator)
    shape = (3, 1000)
    codes = {"entries": torch.zeros(*shape, 1, dtype=torch.int32)}
    rep = Representation(SharedValues(num_values=1024), codes, {"values": values}, shape)
    target = torch.randn(3000, 1, generator=generator)
    found = candidates(rep, target, None, 1)
    wanted = (target - values).square().amin(1)
    assert torch.equal(found.errors[:, 0], wanted)


@pytest.mark.parametrize("symmetric", [False, True])
def test_grid_targets_far_outside_take_the_ends(symmetric):
    p = UniformGrid(bits=2, symmetric=symmetric)
    rep = p.fit(torch.tensor([[-1.0, 0.0, 0.4, 1.0]], dtype=DOUBLE))
    target = torch.tensor([[-1e5], [1e5]], dtype=DOUBLE)
    ends = candidates(rep, target, torch.tensor([0, 1]))
    assert ends.codes.flatten().tolist() == [0, 3]


@pytest.mark.parametrize("scale", [1e-39, 0.0])
@pytest.mark.parametrize("grid", [UniformGrid(bits=2), AffineGrid(bits=2)], ids=str)
def test_levels_that_nearly_fall_together_have_codes_all_the_same(grid, scale):
    """Their distance is too small to divide by: a quotient of infinities would be no code."""
    other = "offsets" if isinstance(grid, AffineGrid) else "zeros"
    values = {"scales": torch.tensor([[scale]]), other: torch.ones(1, 1)}
    rep = Representation(grid, {"levels": torch.zeros(1, 4, 1, dtype=torch.uint8)}, values, (1, 4))
    target = torch.tensor([[1.0], [0.5], [2.0], [0.0]])
    for count in (1, 3):
        query = ask(rep, target, torch.arange(4), count)
        for codes in (grid.search(query), grid.bracket(query).codes):
            assert 0 <= int(codes.min()) <= int(codes.max()) < 4


@pytest.mark.parametrize(
    "parametrization",
    [
        SharedValues(num_values=4),
        UniformGrid(bits=2, group_size=2),
        UniformGrid(bits=2, symmetric=True),
        AffineGrid(bits=2, group_size=2),
        NestedGrid(bits=2, group_size=2, groups=2, scale_bits=2),
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
            for code in all_codes(rep)
        ],
        1,
    )
    found = parametrization.bracket(ask(rep, target, groups))
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
    target = torch.tensor([[3.0], [-1.0], [0.5]], dtype=DOUBLE)
    found = rep.parametrization.bracket(ask(rep, target))
    assert bool((found.errors.amin(1) == 0).all())


def test_vector_codes_have_no_bracket():
    for p in (
        VectorCodebook(bits=1, group_size=2),
        AdditiveCodebooks(num_codebooks=1, bits=1, in_group=2),
    ):
        rep = p.fit(torch.randn(2, 4))
        with pytest.raises(TypeError, match=f"{type(p).__name__} has no scalar levels"):
            p.bracket(ask(rep, torch.zeros(1, 2)))


@pytest.mark.parametrize("k", [0, -1])
def test_the_count_must_be_positive(k):
    rep = shared([0.0, 1.0], [0])
    with pytest.raises(ValueError, match=f"count must be at least 1, got {k}"):
        ask(rep, torch.zeros(1, 1), None, k)


def test_targets_of_another_dtype_are_searched_in_the_values_dtype(case, draw_rep):
    rep = draw_rep(case, 1, dtype=torch.float32)
    size = (rep.layout.num_groups, rep.layout.group_size)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        target = torch.randn(size, generator=generator).bfloat16()
        assert ask(rep, target).target.dtype == torch.float32
        found = candidates(rep, target, None, 2)
        exact = candidates(rep, target.float(), None, 2)
        assert torch.equal(found.codes, exact.codes)
        assert torch.equal(found.errors, exact.errors)
        assert found.errors.dtype == torch.float32


def test_beam_size_is_a_setting_of_the_search_only():
    rep, target = random_sum(2, 3)
    narrow, usual, wide = (candidates(rep, target, beam=b).errors.mean() for b in (1, None, 64))
    assert float(wide) <= float(usual) <= float(narrow)
    assert float(wide) < float(narrow)


@some
@given(seed=SEEDS, k=st.integers(1, 4), part=st.booleans(), with_metric=st.booleans())
def test_candidates_in_a_stack_are_those_of_each_weight(case, draw_rep, seed, k, part, with_metric):
    """Bit by bit: a weight does not notice which others are searched with it."""
    members = [draw_rep(case, seed + i) for i in range(3)]
    if not members[0].parametrization.stacks:
        return
    generator = torch.Generator().manual_seed(seed)
    layout = members[0].layout
    count = max(1, layout.num_groups // 2) if part else layout.num_groups
    groups = [torch.randperm(layout.num_groups, generator=generator)[:count] for _ in members]
    size = (3, count, layout.group_size)
    target = 2 * torch.randn(size, generator=generator, dtype=DOUBLE)
    weights = torch.rand(size, generator=generator, dtype=DOUBLE) if with_metric else [None] * 3
    alone = [
        candidates(rep.clone(), t, g, k, metric=w)
        for rep, t, g, w in zip(members, target, groups, weights, strict=True)
    ]
    stack = Representation.stack(members)
    numbers = torch.cat([g + i * layout.num_groups for i, g in enumerate(groups)])
    both = weights.flatten(0, 1) if isinstance(weights, Tensor) else None
    found = candidates(stack, target.flatten(0, 1), numbers, k, metric=both)
    assert torch.equal(found.codes, torch.cat([a.codes for a in alone]))
    assert torch.equal(found.errors, torch.cat([a.errors for a in alone]))
    if stack.parametrization.has_levels:
        query = ask(stack, target.flatten(0, 1), numbers)
        pairs = [
            rep.parametrization.bracket(ask(rep, t, g))
            for rep, t, g in zip(stack.members(), target, groups, strict=True)
        ]
        found = stack.parametrization.bracket(query)
        assert torch.equal(found.codes, torch.cat([pair.codes for pair in pairs]))


def test_every_parametrization_in_a_table_of_the_tests_stacks(case):
    """What does not is stepped weight by weight: slower, so it is to be chosen, not forgotten."""
    assert case[0].parametrization.stacks
