"""Codes in a full metric against enumeration: of a group, and of the rows of a layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import ask, candidates
from torch import Tensor

from pvopt import (
    AdditiveCodebooks,
    Block,
    Diagonal,
    Forced,
    Representation,
    Rotation,
    Row,
    Scheme,
    SearchOptions,
    SharedValues,
    UniformGrid,
    VectorCodebook,
    row_metric_search,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=3, deadline=None, derandomize=True)
DOUBLE = torch.float64


def draw_metric(size: int, seed: int, *, dtype: torch.dtype = DOUBLE) -> Tensor:
    """X'X of random inputs; of a rank below ``size`` for every third seed, else damped."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, size // 2) if seed % 3 == 0 else 2 * size
    inputs = torch.randn(rows, size, generator=generator, dtype=DOUBLE)
    inputs *= torch.logspace(0, -1, size, dtype=DOUBLE)
    if seed % 3 == 2:
        inputs[:, 0] = 0.0  # an input that is always zero
    return (inputs.T @ inputs).to(dtype)


def target_of(rep: Representation, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(rep.shape, generator=generator, dtype=DOUBLE).to(rep.dtype)


def row_error(rep: Representation, target: Tensor, hessian: Tensor) -> float:
    """The objective, written once more."""
    difference = (rep.decode() - target).double().flatten(1 if target.dim() > 1 else 0)
    difference = difference.view(-1, hessian.shape[0])
    return float(torch.einsum("ri,ij,rj->", difference, hessian.double(), difference))


def columns(rep: Representation) -> int:
    return rep.layout.cols * rep.layout.in_group


def couples_diagonals(rep: Representation) -> bool:
    """Whether the space mixes columns."""
    weights = torch.arange(1.0, columns(rep) + 1, dtype=DOUBLE)
    inside = rep.space.enter_metric(Row(weights.diag()), rep.shape, rep.owned)
    assert isinstance(inside, Row)
    return not inside.hessian.allclose(inside.hessian.diag().diag())


@some
@given(seed=SEEDS, k=st.integers(1, 4))
def test_candidates_in_a_block_metric_are_the_best_codes(fixed_case, draw_rep, all_codes, seed, k):
    rep = draw_rep(fixed_case, seed)
    p, size = rep.parametrization, rep.layout.group_size
    matrix = draw_metric(size, seed)
    groups = torch.arange(min(5, rep.layout.num_groups))
    target = 2 * torch.randn(len(groups), size, dtype=DOUBLE)
    errors = []
    for code in all_codes(rep):
        difference = p.decode_groups(rep, groups, code.expand(len(groups), -1)) - target
        errors.append(torch.einsum("ni,ij,nj->n", difference, matrix, difference))
    wanted = torch.stack(errors, 1).sort(1).values[:, :k]
    found = candidates(rep, target, groups, k, metric=Block(matrix))
    exist = wanted.shape[1]
    torch.testing.assert_close(found.errors[:, :exist], wanted, rtol=1e-6, atol=1e-9)
    for slot in range(exist):
        difference = p.decode_groups(rep, groups, found.codes[:, slot]) - target
        exact = torch.einsum("ni,ij,nj->n", difference, matrix, difference)
        torch.testing.assert_close(found.errors[:, slot], exact, rtol=1e-6, atol=1e-9)


class DiagonalOnly(VectorCodebook):
    """A codebook whose own search knows no full metric."""

    couples = False


@some
@given(seed=SEEDS)
def test_the_general_search_in_a_block_metric_is_never_worse_than_the_current_code(draw_rep, seed):
    rep = draw_rep((DiagonalOnly(bits=5, group_size=3), (4, 6)), seed)
    p, metric = rep.parametrization, Block(draw_metric(3, seed))
    target = torch.randn(8, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    found = candidates(rep, target, metric=metric)
    assert found.codes.shape == (8, 1, 1)
    current = metric.squared_norms(p.decode_groups(rep) - target)
    assert bool((found.errors[:, 0] <= current).all())
    three = candidates(rep, target, None, 3, metric=metric)
    assert bool((three.errors.diff(dim=1) >= 0).all())
    assert bool((found.errors[:, 0] <= three.errors[:, 0]).all())
    # with a metric that is diagonal it is the search of the diagonal
    diagonal = torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)
    left = candidates(rep, target, metric=Block(diagonal.diag()))
    right = candidates(rep, target, metric=diagonal.expand(8, 3))
    torch.testing.assert_close(left.errors, right.errors)


@some
@given(seed=SEEDS)
def test_no_pass_raises_the_error_and_the_last_is_optimal_group_by_group(
    fixed_case, draw_rep, all_codes, seed
):
    rep = draw_rep(fixed_case, seed)
    hessian, target = draw_metric(columns(rep), seed), target_of(rep, seed)
    slack = 1e-9 * (1 + row_error(rep, target, hessian))
    errors, changes = [row_error(rep, target, hessian)], -1
    for _ in range(100):
        codes = rep.group_codes().clone()
        changes = row_metric_search(rep, target, Row(hessian))
        assert changes == int((rep.group_codes() != codes).any(-1).sum())
        errors.append(row_error(rep, target, hessian))
        assert errors[-1] <= errors[-2] + slack
        if changes == 0:
            break
    assert changes == 0
    groups = torch.randperm(rep.layout.num_groups, generator=torch.Generator().manual_seed(seed))
    for group in groups[:4].tolist():
        for code in all_codes(rep):
            other = rep.clone()
            other.write_codes_(torch.tensor([group]), code[None])
            assert row_error(other, target, hessian) >= errors[-1] - slack


@some
@given(seed=SEEDS)
def test_supports_in_a_metric_are_never_worse_than_before(sparse_case, draw_rep, seed):
    """Values that enter come from the target, so an error may only fall; a group and the rows."""
    rep = draw_rep(sparse_case, seed)
    p, size = rep.parametrization, rep.layout.group_size
    metric = Block(draw_metric(size, seed))
    target = target_of(rep, seed)
    goal = rep.split(target)
    found = candidates(rep, goal, metric=metric)
    current = metric.squared_norms(p.decode_groups(rep) - goal)
    moved = p.decode_moved(ask(rep, goal), found.codes[:, 0])
    torch.testing.assert_close(found.errors[:, 0], metric.squared_norms(moved - goal))
    assert bool((found.errors[:, 0] <= current).all())


@some
@given(seed=SEEDS)
def test_a_visit_takes_the_best_code_of_the_joint_error(fixed_case, draw_rep, all_codes, seed):
    """One group alone: the block target is exact, whatever the errors of the rest of its row."""
    rep = draw_rep(fixed_case, seed)
    hessian, target = draw_metric(columns(rep), seed), target_of(rep, seed)
    group = seed % rep.layout.num_groups
    least = row_error(rep, target, hessian)
    for code in all_codes(rep):
        other = rep.clone()
        other.write_codes_(torch.tensor([group]), code[None])
        least = min(least, row_error(other, target, hessian))
    before = rep.group_codes().clone()
    row_metric_search(rep, target, Row(hessian), groups=torch.tensor([group]))
    assert row_error(rep, target, hessian) == pytest.approx(least, rel=1e-7, abs=1e-9)
    others = torch.arange(rep.layout.num_groups) != group
    assert torch.equal(rep.group_codes()[others], before[others])


@some
@given(seed=SEEDS)
def test_only_the_selected_groups_move_whatever_their_order(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    hessian, target = draw_metric(columns(rep), seed), target_of(rep, seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(rep.layout.num_groups, generator=generator)[: 1 + seed % 5]
    other, before = rep.clone(), rep.group_codes().clone()
    assert row_metric_search(rep, target, Row(hessian), groups=shuffled) <= len(shuffled)
    row_metric_search(other, target, Row(hessian), groups=shuffled.sort().values)
    assert torch.equal(rep.group_codes(), other.group_codes())
    moved = (rep.group_codes() != before).any(1).nonzero()[:, 0]
    assert set(moved.tolist()) <= set(shuffled.tolist())


@some
@given(seed=SEEDS)
def test_all_groups_in_any_order_are_a_search_of_all(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    hessian, target = draw_metric(columns(rep), seed), target_of(rep, seed)
    order = torch.randperm(rep.layout.num_groups, generator=torch.Generator().manual_seed(seed))
    other = rep.clone()
    row_metric_search(rep, target, Row(hessian), groups=order)
    row_metric_search(other, target, Row(hessian))
    assert torch.equal(rep.group_codes(), other.group_codes())


@some
@given(seed=SEEDS)
def test_a_metric_without_coupling_is_the_ordinary_search(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    target = target_of(rep, seed)
    p = rep.parametrization
    weights = torch.rand(columns(rep), dtype=DOUBLE) + 0.1
    if couples_diagonals(rep):  # rotated, a diagonal couples unless it is constant
        weights.fill_(0.3)
    inside = rep.space.enter_metric(Row(weights.diag()), rep.shape, rep.owned)
    metric = rep.layout.split(inside.diagonal(rep.inner_shape))
    goal = rep.split(target)
    found = candidates(rep, goal, metric=metric)
    row_metric_search(rep, target, Row(weights.diag()))
    error = (metric * (p.decode_groups(rep) - goal).square()).sum(1)
    torch.testing.assert_close(error, found.errors[:, 0], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("outlier", "share"), [(30.0, 0.5), (1e3, 0.95)])
def test_float32_and_a_nearly_singular_metric_stay_monotone(outlier, share):
    """Inputs of a language model: one much larger than the rest, two almost the same."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    inputs[:, 3] *= outlier
    inputs[:, 10] = inputs[:, 11] + 1e-3 * inputs[:, 12]
    hessian = inputs.T @ inputs
    weight = torch.randn(32, 64, generator=generator)
    for p in (
        UniformGrid(bits=2),
        AdditiveCodebooks(num_codebooks=2, bits=4, in_group=8),
        VectorCodebook(bits=4, group_size=4),
    ):
        rep = p.fit(weight)
        errors = [row_error(rep, weight, hessian)]
        for _ in range(4):
            row_metric_search(rep, weight, Row(hessian))
            errors.append(row_error(rep, weight, hessian))
            assert errors[-1] <= errors[-2] * (1 + 1e-5)
        assert errors[-1] < share * errors[0]  # the outlier's own error cannot be repaired


def test_a_wider_beam_may_be_asked_for_and_passes_add_up():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 32, generator=generator)
    inputs = torch.randn(64, 32, generator=generator)
    hessian = inputs.T @ inputs
    start = AdditiveCodebooks(num_codebooks=2, bits=4, in_group=8).fit(weight)
    errors = []
    for beam in (1, 5, None, 16):
        rep = start.clone()
        options = SearchOptions(beam_size=beam)
        row_metric_search(rep, weight, Row(hessian), options=options, passes=3)
        assert rep.parametrization == start.parametrization
        errors.append(row_error(rep, weight, hessian))
    assert errors[1] == errors[2]  # the usual beam
    assert errors[0] > errors[3]
    once, thrice = start.clone(), start.clone()
    changes = sum(row_metric_search(once, weight, Row(hessian)) for _ in range(3))
    assert row_metric_search(thrice, weight, Row(hessian), passes=3) == changes
    assert torch.equal(once.group_codes(), thrice.group_codes())


def test_forced_rounding_moves_every_group_that_may():
    rep = UniformGrid(bits=2).fit(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    before = rep.group_codes().clone()
    target, hessian = rep.decode(), Row(torch.eye(4))
    assert row_metric_search(rep, target, hessian) == 0
    assert row_metric_search(rep, target, hessian, groups=torch.tensor([2, 9]), rounding=Forced())
    assert (rep.group_codes() != before).flatten().nonzero().flatten().tolist() == [2, 9]


def test_invalid_arguments_are_named():
    rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
    target, eye = torch.zeros(1, 2), Row(torch.eye(2))
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        row_metric_search(rep, target, eye, passes=0)
    with pytest.raises(ValueError, match=r"hessian must have shape \[2, 2\].*got \[3, 3\]"):
        row_metric_search(rep, target, Row(torch.eye(3)))
    with pytest.raises(ValueError, match=r"hessian must be square, got shape \[2, 3\]"):
        Row(torch.ones(2, 3))
    with pytest.raises(TypeError, match="hessian must be floating"):
        Row(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="hessian must be finite"):
        Row(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="hessian must have a non-negative diagonal"):
        Row(-torch.eye(2))
    with pytest.raises(ValueError, match="hessian must be symmetric"):
        Row(torch.tensor([[1.0, 0.5], [0.4, 1.0]]))
    with pytest.raises(TypeError, match="matrix must be floating"):
        Block(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="matrix must be square"):
        Block(torch.ones(2))
    with pytest.raises(ValueError, match="matrix must be positive semidefinite"):
        _ = Block(torch.tensor([[1.0, 2.0], [2.0, 1.0]])).inverse


def test_groups_in_another_space_get_the_metric_there_or_a_reason():
    """A space says what it makes of a metric; what has no form there is refused by name."""
    rotated = Scheme(VectorCodebook(bits=1, group_size=2), Rotation())
    rep = rotated.fit(torch.randn(2, 4))
    with pytest.raises(TypeError, match="a rotated space takes no diagonal metric that differs"):
        row_metric_search(rep, torch.zeros(2, 4), Diagonal(torch.ones(2, 4)))
    target, weights = torch.randn(2, 4), Diagonal(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    other = rep.clone()
    row_metric_search(rep, target, weights)
    row_metric_search(other, target, Row(weights.weights[0].diag()))
    assert torch.equal(rep.group_codes(), other.group_codes())
