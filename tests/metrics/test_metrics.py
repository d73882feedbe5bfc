"""Metrics between weights and between the weights of a group, against their formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt import Block, Diagonal, GroupLayout, Metric, Row
from pvopt.metrics.diagonal import GroupDiagonal, SeparableCosts
from pvopt.metrics.row import check_hessian

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=12, deadline=None, derandomize=True)
DOUBLE = torch.float64
SHAPES = [(4, 6), (2, 2, 3), (6,), (1, 6)]
GROUPS = [(1, 1), (1, 3), (2, 2), (1, 6)]


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def full(metric: Metric | None, shape: tuple[int, ...]) -> Tensor:
    """The matrix of the metric between all weights, in row-major order."""
    size = torch.Size(shape).numel()
    if metric is None:
        return torch.eye(size, dtype=DOUBLE)
    if isinstance(metric, Row):
        return torch.block_diag(*[metric.hessian] * (size // len(metric.hessian)))
    assert isinstance(metric, Diagonal)
    columns = metric.weights.shape[-1] if len(metric.weights) == 1 else size
    weights = metric.weights.reshape(-1)
    return weights.repeat(size // len(weights)).diag() if columns < size else weights.diag()


def draw(kind: str, shape: tuple[int, ...], seed: int) -> Metric:
    columns = torch.Size(shape).numel() // (shape[0] if len(shape) > 1 else 1)
    if kind == "rows":
        rank = columns // 2 if seed % 3 == 0 else 2 * columns
        inputs = gaussian(seed, rank, columns)
        return Row(inputs.T @ inputs)
    return Diagonal(gaussian(seed, *(shape if kind == "diagonal" else (1, columns))).square())


kinds = pytest.mark.parametrize("kind", ["diagonal", "shared", "rows"])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@kinds
@shapes
@some
@given(seed=SEEDS)
def test_norms_and_diagonals(kind, shape, seed):
    metric, weight = draw(kind, shape, seed), gaussian(seed + 1, *shape)
    matrix, flat = full(metric, shape), weight.flatten()
    torch.testing.assert_close(metric.squared_norm(weight), flat @ matrix @ flat)
    diagonal = metric.diagonal(shape)
    assert tuple(diagonal.shape) == shape
    torch.testing.assert_close(diagonal.flatten(), matrix.diagonal())
    metric.check(shape)


@kinds
@some
@given(seed=SEEDS)
def test_changes_of_the_space(kind, seed):
    """Permuted, scaled, rotated and padded: the same norm of the weight as it is then."""
    shape = (4, 6)
    metric, weight = draw(kind, shape, seed), gaussian(seed + 1, *shape)
    norm = metric.squared_norm(weight)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).int()
    torch.testing.assert_close(
        metric.permuted(order, shape).squared_norm(weight[:, order.long()]), norm
    )
    rows, columns = gaussian(seed + 2, 4), gaussian(seed + 3, 6)
    torch.testing.assert_close(
        metric.scaled(None, columns, shape).squared_norm(weight / columns), norm
    )
    if kind != "rows":
        scaled = metric.scaled(rows, columns, shape)
        torch.testing.assert_close(scaled.squared_norm(weight / columns / rows[:, None]), norm)
        torch.testing.assert_close(
            metric.scaled(rows, None, shape).squared_norm(weight / rows[:, None]), norm
        )
    torch.testing.assert_close(metric.scaled(None, None, shape).squared_norm(weight), norm)
    left, right = (torch.linalg.qr(gaussian(seed + i, n, n))[0] for i, n in ((4, 4), (5, 6)))
    if kind != "diagonal":
        rotated = metric.rotated(lambda x: x @ right.T, shape)
        torch.testing.assert_close(rotated.squared_norm(left @ weight @ right.T), norm)
    padded = torch.nn.functional.pad(weight, (0, 2, 0, 3), value=7.0)
    padded = padded[:4] if kind == "rows" else padded  # of rows beyond it a Row knows nothing
    torch.testing.assert_close(metric.padded(shape, (7, 8)).squared_norm(padded), norm)


def test_what_rows_share_stays_shared_where_only_columns_are_added():
    metric = Diagonal(torch.tensor([[1.0, 2.0]]))
    assert metric.padded((3, 2), (3, 4)).weights.tolist() == [[1.0, 2.0, 0.0, 0.0]]
    assert metric.padded((3, 2), (4, 2)).weights.tolist() == [[1.0, 2.0]] * 3 + [[0.0, 0.0]]


def test_scales_of_higher_precision_are_not_rounded():
    scales = torch.tensor([1.0, 1.0 / 3.0], dtype=DOUBLE)
    found = Diagonal(torch.ones(1, 2)).scaled(None, scales, (1, 2))
    torch.testing.assert_close(found.weights[0], scales.square(), rtol=1e-15, atol=0)
    found = Row(torch.eye(2)).scaled(None, scales, (1, 2))
    torch.testing.assert_close(found.hessian.diagonal(), scales.square(), rtol=1e-15, atol=0)


def test_what_has_no_form_is_refused_with_a_reason():
    with pytest.raises(TypeError, match="takes no scales of rows: rows would differ"):
        Row(torch.eye(2)).scaled(torch.ones(3), None, (3, 2))
    with pytest.raises(TypeError, match="no diagonal metric that differs between rows"):
        Diagonal(torch.ones(3, 2)).rotated(lambda x: x, (3, 2))


@kinds
@pytest.mark.parametrize(("out_group", "in_group"), GROUPS)
@some
@given(seed=SEEDS)
def test_costs_of_groups_are_those_of_the_whole(kind, out_group, in_group, seed):
    """Goals, norms and bounds, against the matrix of all weights."""
    shape = (4, 6)
    metric, layout = draw(kind, shape, seed), GroupLayout(shape, out_group, in_group)
    target, weight = gaussian(seed + 1, *shape), gaussian(seed + 2, *shape)
    groups, goals = layout.split(weight), layout.split(target)
    error = groups - goals
    costs = metric.costs(layout, weight)
    matrix = full(metric, shape)
    places = layout.split(torch.arange(24).view(shape))
    every = torch.randperm(layout.num_groups, generator=torch.Generator().manual_seed(seed))
    vectors = gaussian(seed + 3, layout.num_groups, layout.group_size)
    norms, bounds = costs.squared_norms(vectors, every), costs.bounds(error)
    torch.testing.assert_close(
        costs.squared_norms(vectors)[every], costs.squared_norms(vectors[every], every)
    )
    flat = layout.merge(error).flatten()
    present = flat @ matrix @ flat
    for number, index in costs.rounds(every):
        chosen = every[index]
        aims, own = costs.goal(number, chosen, goals, groups, error)
        for row, group in enumerate(chosen.tolist()):
            place = places[group]
            own_matrix = matrix[place][:, place]
            vector = vectors[every.tolist().index(group)]
            wanted = vector @ own_matrix @ vector
            torch.testing.assert_close(norms[every.tolist().index(group)], wanted)
            # moving the group to a place changes the whole by what the goal says
            changes = []
            for move in (vectors[group], gaussian(seed + 4, layout.group_size)):
                moved = flat.clone()
                moved[place] += move
                whole = moved @ matrix @ moved - present
                away = (groups[group] + move - aims[row])[None]
                start = (groups[group] - aims[row])[None]
                change = own.squared_norms(pick(own, away, row, len(chosen)))
                change = change - own.squared_norms(pick(own, start, row, len(chosen)))
                torch.testing.assert_close(change[row % len(change)], whole, rtol=1e-6, atol=1e-8)
                changes.append(float(-whole / 2))
            assert max(changes) <= float(bounds[group]) * (1 + 1e-6) + 1e-8
            # and what is best reaches the bound
            moved = flat.clone()
            moved[place] += aims[row] - groups[group]
            gained = (present - moved @ matrix @ moved) / 2
            torch.testing.assert_close(gained, bounds[group], rtol=1e-6, atol=1e-8)


def pick(own, vector: Tensor, row: int, count: int) -> Tensor:
    """A vector of one group in the place where a metric of several expects it."""
    return vector.expand(count, -1) if isinstance(own, GroupDiagonal) else vector


def test_the_euclidean_metric_has_no_weights():
    error = gaussian(0, 6, 4)
    costs = SeparableCosts(None)
    torch.testing.assert_close(costs.bounds(error), 0.5 * error.square().sum(1))
    goal, metric = costs.goal(0, torch.tensor([2, 0]), error, error, error)
    assert metric is None
    assert torch.equal(goal, error[[2, 0]])
    assert not costs.coupled


@some
@given(seed=SEEDS, size=st.integers(1, 5), rows=st.integers(1, 3))
def test_blocks(seed, size, rows):
    root = gaussian(seed, size, max(1, size - seed % 2))
    block, vectors = Block(root @ root.T), gaussian(seed + 1, 7, 2, rows * size)
    parts = vectors.unflatten(-1, (rows, size))
    wanted = torch.einsum("abri,ij,abrj->ab", parts, root @ root.T, parts)
    torch.testing.assert_close(block.squared_norms(vectors), wanted)
    torch.testing.assert_close(block.map(vectors).square().sum(-1), wanted)
    diagonal = block.diagonal(vectors[:, 0])
    torch.testing.assert_close(diagonal, (root @ root.T).diagonal().repeat(rows).expand(7, -1))
    torch.testing.assert_close(block.matrix @ block.inverse @ block.matrix, block.matrix)
    assert block.couples
    weights = gaussian(seed + 2, 7, rows * size).square()
    own = GroupDiagonal(weights)
    torch.testing.assert_close(
        own.squared_norms(vectors), (vectors.square() * weights[:, None]).sum(-1)
    )
    assert torch.equal(own.diagonal(vectors[:, 0]), weights)
    with pytest.raises(NotImplementedError, match="GroupDiagonal maps no vectors"):
        own.map(vectors)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        (torch.ones(2, dtype=torch.int64), TypeError, "weights must be floating"),
        (torch.tensor([1.0, -1.0]), ValueError, "weights must not be negative or NaN"),
        (torch.tensor([1.0, torch.nan]), ValueError, "weights must not be negative or NaN"),
    ],
)
def test_bad_weights_are_refused(weights, error, words):
    with pytest.raises(error, match=words):
        Diagonal(weights)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (Diagonal(torch.ones(3, 1)), r"a diagonal metric must have shape \[3, 4\] or \[1, 4\]"),
        (Diagonal(torch.ones(4)), r"got \[4\]"),
        (Row(torch.eye(3)), r"hessian must have shape \[4, 4\].*\[3, 4\], got \[3, 3\]"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(metric, words):
    layout = GroupLayout((3, 4), 1, 2)
    for use in (
        lambda: metric.check((3, 4)),
        lambda: metric.diagonal((3, 4)),
        lambda: metric.costs(layout, torch.ones(3, 4)),
        lambda: metric.permuted(torch.arange(4).int(), (3, 4)),
        lambda: metric.scaled(None, torch.ones(4), (3, 4)),
        lambda: metric.padded((3, 4), (4, 4)),
    ):
        with pytest.raises(ValueError, match=words):
            use()


def test_the_one_check_of_hessians():
    check_hessian("x", torch.zeros(0, 0))
    check_hessian("x", torch.ones(3, 3, device="meta"))
    check_hessian("x", torch.tensor([[1.0, 1e-4], [0.0, 1.0]]))
    for matrix, error, words in (
        (torch.ones(2), ValueError, r"x must be square, got shape \[2\]"),
        (torch.ones(2, 2).long(), TypeError, "x must be floating"),
        (torch.full((2, 2), torch.inf), ValueError, "x must be finite"),
        (-torch.eye(2), ValueError, "x must have a non-negative diagonal"),
        (torch.tensor([[1.0, 0.1], [0.0, 1.0]]), ValueError, "x must be symmetric"),
    ):
        with pytest.raises(error, match=words):
            check_hessian("x", matrix)
