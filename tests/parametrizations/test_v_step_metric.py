"""V steps in a metric, and the gain rule, over every parametrization."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt import (
    AllGroups,
    Diagonal,
    Forced,
    Gain,
    Greedy,
    Metric,
    Nearest,
    Representation,
    Row,
    SearchOptions,
    Stochastic,
    Subspace,
    TrustRegion,
    UniformGrid,
    v_step,
)
from pvopt.engine.dense_search import DenseSearch

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=3, deadline=None, derandomize=True)
DOUBLE = torch.float64
KINDS = ["none", "diagonal", "rows"]


def takes_diagonals(rep: Representation) -> bool:
    """Whether the space of the groups has a metric for weights that differ between rows."""
    try:
        rep.space.enter_metric(Diagonal(torch.ones(rep.shape)), rep.shape, rep.owned)
    except TypeError:
        return False
    return True


def draw(rep: Representation, kind: str, seed: int) -> tuple[Tensor, Metric | None]:
    """A target and a metric; rotated groups take that of the rows in place of a diagonal."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(rep.shape, generator=generator, dtype=DOUBLE)
    if kind == "none":
        return target, None
    if kind == "diagonal" and takes_diagonals(rep):
        return target, Diagonal(torch.rand(rep.shape, generator=generator, dtype=DOUBLE) ** 4)
    size = rep.layout.cols * rep.layout.in_group
    inputs = torch.randn(2 * size, size, generator=generator, dtype=DOUBLE)
    inputs *= torch.logspace(0, -1, size, dtype=DOUBLE)
    return target, Row(inputs.T @ inputs)


def bound(rep: Representation, target: Tensor, metric: Metric | None) -> float:
    """Half the squared distance in the metric, written once more: what a V step minimises."""
    difference = rep.decode() - target
    if isinstance(metric, Row):
        rows = difference.reshape(-1, len(metric.hessian))
        return 0.5 * float(torch.einsum("ri,ij,rj->", rows, metric.hessian, rows))
    squares = difference.square()
    return 0.5 * float(
        (squares * metric.weights if isinstance(metric, Diagonal) else squares).sum()
    )


def step(rep: Representation, target: Tensor, metric: Metric | None, **rules) -> int:
    return int(v_step(rep, target, metric=metric, **{"rounding": Nearest()} | rules))


@pytest.mark.parametrize("kind", KINDS)
@some
@given(seed=SEEDS, ratio=st.sampled_from([None, 0.05, 0.5]), rule=st.integers(0, 2))
def test_no_v_step_raises_the_bound(case, draw_rep, kind, seed, ratio, rule):
    rep = draw_rep(case, seed)
    target, metric = draw(rep, kind, seed)
    subspace = [AllGroups(), Greedy(0.4), Gain(0.4)][rule]
    before, old, codes = bound(rep, target, metric), rep.decode(), rep.group_codes().clone()
    trust = None if ratio is None else TrustRegion(ratio)
    moved = step(rep, target, metric, subspace=subspace, trust_region=trust)
    assert moved == int((rep.group_codes() != codes).any(1).sum())
    assert bound(rep, target, metric) <= before * (1 + 1e-9) + 1e-12
    if ratio is not None and moved > 1:
        assert float((rep.decode() - old).norm()) <= ratio * float(old.norm()) * (1 + 1e-9)


@some
@given(seed=SEEDS)
def test_a_diagonal_metric_is_never_worse_than_euclidean_on_its_own_objective(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    euclidean = rep.clone()
    target, metric = draw(rep, "diagonal", seed)
    if not takes_diagonals(rep):
        with pytest.raises(TypeError, match="diagonal"):
            step(rep, target, Diagonal(torch.ones_like(target)), subspace=AllGroups())
        return
    step(rep, target, metric, subspace=AllGroups())
    step(euclidean, target, None, subspace=AllGroups())
    assert bound(rep, target, metric) <= bound(euclidean, target, metric) + 1e-9
    assert bound(euclidean, target, None) <= bound(rep, target, None) + 1e-9


@some
@given(seed=SEEDS)
def test_the_metric_of_the_rows_improves_on_the_euclidean_step(case, draw_rep, seed):
    """Started from the Euclidean step's codes, it is never worse in the metric of the rows."""
    rep = draw_rep(case, seed)
    target, metric = draw(rep, "rows", seed)
    step(rep, target, None, subspace=AllGroups())
    euclidean = bound(rep, target, metric)
    step(rep, target, metric, subspace=AllGroups())
    assert bound(rep, target, metric) <= euclidean * (1 + 1e-9)


def test_a_step_from_fitted_codes_is_better_in_the_metric_of_the_rows(case):
    """Summed over draws; single ones may end in another optimum. Far from the target it need not
    be: columns that are visited early make up for errors that later columns lose anyway."""
    scheme, shape = case
    total = {"rows": 0.0, "euclidean": 0.0}
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rep = scheme.fit(torch.randn(shape, generator=generator, dtype=DOUBLE))
        other = rep.clone()
        noise, metric = draw(rep, "rows", seed)
        target = rep.decode() + 0.5 * noise
        step(rep, target, metric, subspace=AllGroups())
        step(other, target, None, subspace=AllGroups())
        total["rows"] += bound(rep, target, metric)
        total["euclidean"] += bound(other, target, metric)
    assert total["rows"] <= total["euclidean"]


def search_of(rep: Representation, target: Tensor, metric: Metric | None) -> DenseSearch:
    rules = {"rounding": Nearest(), "options": SearchOptions(), "draws": None}
    return DenseSearch(rep, target, metric, **rules)


@pytest.mark.parametrize("kind", KINDS)
@some
@given(seed=SEEDS)
def test_decreases_are_the_best_that_single_moves_reach(
    fixed_case, draw_rep, all_codes, kind, seed
):
    """Against enumeration of the codes of one group, all others as they are."""
    rep = draw_rep(fixed_case, seed)
    target, metric = draw(rep, kind, seed)
    groups = torch.randperm(rep.layout.num_groups, generator=torch.Generator().manual_seed(seed))
    decreases = search_of(rep, target, metric).decreases(groups)
    start = bound(rep, target, metric)
    for group, decrease in list(zip(groups.tolist(), decreases.tolist(), strict=True))[:3]:
        best = start
        for code in all_codes(rep):
            other = rep.clone()
            other.write_codes_(torch.tensor([group]), code[None])
            best = min(best, bound(other, target, metric))
        assert decrease == pytest.approx(start - best, rel=1e-6, abs=1e-8 * (1 + start))


@dataclass
class Only(Subspace):
    """One group alone."""

    group: int

    def select(self, magnitudes, draws=None, *, ordered=True, decreases=None):
        return torch.tensor([[self.group]])


@pytest.mark.parametrize("kind", KINDS)
@some
@given(seed=SEEDS)
def test_a_single_move_lowers_the_bound_by_its_decrease(case, draw_rep, kind, seed):
    rep = draw_rep(case, seed)
    target, metric = draw(rep, kind, seed)
    search, start = search_of(rep, target, metric), bound(rep, target, metric)
    groups = torch.arange(rep.layout.num_groups)
    decreases = search.decreases(groups)
    assert bool((decreases <= search.bounds() * (1 + 1e-9) + 1e-12).all())
    for group in groups[:3].tolist():
        other = rep.clone()
        moved = step(other, target, metric, subspace=Only(group))
        assert moved == int(decreases[group] > 0)
        after = bound(other, target, metric)
        wanted = pytest.approx(start - after, rel=1e-6, abs=1e-8 * (1 + start))
        assert float(decreases[group]) == wanted


class Full(Subspace):
    """Gain without bounds: every group is searched."""

    needs_decreases = True

    def __init__(self, count: int) -> None:
        self.count = count

    def select(self, magnitudes, draws=None, *, ordered=True, decreases=None):
        gains = decreases.search(torch.arange(magnitudes.shape[1]))
        order = gains.argsort(descending=True, stable=True)[: self.count]
        return order[gains[order] > 0][None]


@pytest.mark.parametrize("kind", KINDS)
@some
@given(seed=SEEDS, fraction=st.sampled_from([0.05, 0.3, 1.0]), ratio=st.sampled_from([None, 0.3]))
def test_gain_selects_as_a_full_search_does(case, draw_rep, kind, seed, fraction, ratio):
    rep = draw_rep(case, seed)
    other = rep.clone()
    target, metric = draw(rep, kind, seed)
    count = Gain(fraction).count(rep.layout.num_groups)
    trust = None if ratio is None else TrustRegion(ratio)
    moved = step(rep, target, metric, subspace=Gain(fraction), trust_region=trust)
    assert moved == step(other, target, metric, subspace=Full(count), trust_region=trust) <= count
    assert torch.equal(rep.group_codes(), other.group_codes())


@pytest.mark.parametrize("kind", ["none", "diagonal"])
@some
@given(seed=SEEDS)
def test_gain_lowers_the_bound_most(case, draw_rep, kind, seed):
    """Of all rules that move as many groups: the sum of the largest decreases."""
    start = draw_rep(case, seed)
    kind = kind if takes_diagonals(start) else "none"
    target, metric = draw(start, kind, seed)
    results = {}
    for name, rule in (("gain", Gain(0.3)), ("greedy", Greedy(0.3))):
        rep = start.clone()
        step(rep, target, metric, subspace=rule)
        results[name] = bound(rep, target, metric)
    assert results["gain"] <= results["greedy"] + 1e-9


def test_every_selected_group_moves_by_any_rounding():
    """Forced and random roundings get the groups worth moving; no place is lost."""
    generator = torch.Generator().manual_seed(0)
    rep = UniformGrid(bits=2).fit(torch.randn(8, 16, generator=generator))
    target = rep.decode() + 2 * torch.randn(8, 16, generator=generator)
    for rounding in (Nearest(), Forced()):
        fresh = rep.clone()
        assert step(fresh, target, None, rounding=rounding, subspace=Gain(0.05)) == 7
    fresh = rep.clone()
    rounding = Stochastic(temperature=1e-9)
    assert step(fresh, target, None, rounding=rounding, subspace=Gain(0.05)) == 7
    nothing = rep.decode() + 1e-3  # too short for any group to cross
    for rounding in (Nearest(), Forced()):
        assert step(rep, nothing, None, rounding=rounding, subspace=Gain(0.5)) == 0
