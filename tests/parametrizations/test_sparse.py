"""Sparse weights: supports against enumeration, hard thresholding, what follows a nonzero."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from queries import ask, step
from torch import nn

from pvopt import (
    PARAMETRIZATIONS,
    AdamValues,
    AllGroups,
    Diagonal,
    Forced,
    Greedy,
    Nearest,
    PVOptimizer,
    Representation,
    SGDValues,
    Sparse,
    SparseNM,
)
from pvopt.parametrizations.sparse_support import SparseSupport
from pvopt.parametrizations.supports import best_supports

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=12, deadline=None, derandomize=True)
DOUBLE = torch.float64
KINDS = [
    Sparse(density=0.5),
    Sparse(density=0.25),
    Sparse(density=0.3, per="tensor"),
    SparseNM(nonzeros=2, group_size=4),
    SparseNM(nonzeros=1, group_size=8),
]
each = pytest.mark.parametrize("parametrization", KINDS, ids=str)


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@some
@given(seed=SEEDS, m=st.integers(1, 7), k=st.integers(1, 40), ties=st.booleans())
def test_best_supports_are_the_k_best_of_all(seed, m, k, ties):
    gains = gaussian(seed, 3, m)
    if ties:
        gains = gains.round()
    for count in range(1, m + 1):
        subsets = list(itertools.combinations(range(m), count))
        totals = np.array([[row[list(s)].sum() for s in subsets] for row in gains.numpy()])
        wanted = -np.sort(-totals, axis=1)[:, :k]
        found = best_supports(gains, count, k)
        assert found.shape == (3, min(k, len(subsets)), m)
        assert bool((found.sum(-1) == count).all())
        sums = (found * gains[:, None]).sum(-1)
        np.testing.assert_allclose(sums.numpy(), wanted, atol=1e-12)
        for masks in found.tolist():
            assert len({tuple(mask) for mask in masks}) == len(masks)


@each
@some
@given(seed=SEEDS, with_metric=st.booleans())
def test_the_fit_keeps_the_largest(parametrization, seed, with_metric):
    """Hard thresholding in NumPy: sort, cut, compare the kept energy."""
    weight = gaussian(seed, 4, 8)
    metric = gaussian(seed + 1, 4, 8).square() if with_metric else torch.ones(4, 8, dtype=DOUBLE)
    rep = parametrization.fit(weight, metric=Diagonal(metric) if with_metric else None)
    decoded, support = rep.decode(), parametrization.support(rep)
    assert torch.equal(decoded, torch.where(support, weight, 0.0))
    energy = rep.split(metric * weight.square()).numpy()
    count = parametrization.num_nonzeros((4, 8))
    best = -np.sort(-energy, axis=1)[:, :count].sum(1)
    kept = rep.split(support * metric * weight.square()).numpy().sum(1)
    np.testing.assert_allclose(kept, best, rtol=1e-12)


@each
@some
@given(seed=SEEDS)
def test_from_its_own_values_a_v_step_is_hard_thresholding(parametrization, seed):
    """Where the target agrees with the nonzeros, the new weight is the target, cut."""
    rep = parametrization.fit(gaussian(seed, 4, 8))
    old = parametrization.support(rep)
    target = torch.where(old, rep.decode(), 3 * gaussian(seed + 1, 4, 8))
    step(rep, target, rounding=Nearest(), subspace=AllGroups())
    assert torch.equal(rep.decode(), parametrization.fit(target).decode())


@each
@some
@given(seed=SEEDS)
def test_a_move_keeps_what_stays_and_takes_what_enters(parametrization, seed):
    rep = parametrization.fit(gaussian(seed, 4, 8))
    before, old = rep.clone(), parametrization.support(rep)
    target = gaussian(seed + 1, 4, 8)
    new = parametrization.fit(gaussian(seed + 2, 4, 8))  # codes drawn at random
    num_groups = rep.layout.num_groups
    groups = torch.randperm(num_groups, generator=torch.Generator().manual_seed(seed))
    groups = groups[: (num_groups + 1) // 2]
    goal, codes = rep.split(target)[groups], new.group_codes(groups).long()
    moved = parametrization.decode_moved(ask(rep, goal, groups), codes)
    parametrization.move_(rep, groups, codes, moved)
    torch.testing.assert_close(parametrization.decode_groups(rep, groups), moved)
    chosen = torch.zeros(num_groups, 1, dtype=torch.bool)
    chosen[groups] = True
    chosen = chosen.expand(-1, rep.layout.group_size)
    chosen = rep.merge(chosen.contiguous())
    wanted = torch.where(old, before.decode(), target)
    wanted = torch.where(parametrization.support(new), wanted, 0.0)
    wanted = torch.where(chosen, wanted, before.decode())
    assert torch.equal(rep.decode(), wanted)
    found = []
    for every in (None, torch.arange(num_groups)):
        whole, codes = before.clone(), new.group_codes().long()
        moved = parametrization.decode_moved(ask(whole, rep.split(target), every), codes)
        parametrization.move_(whole, every, codes, moved)
        found.append(whole.decode())
    assert torch.equal(*found)


@some
@given(seed=SEEDS)
def test_forced_swaps_the_weakest_kept_for_the_strongest_dropped(seed):
    """Where the target is the weight plus little, the second best support differs in one entry."""
    weight = gaussian(seed, 3, 8)
    rep = Sparse(density=0.5).fit(weight)
    old, target = rep.decode(), weight
    assert step(rep, target, rounding=Forced(), subspace=AllGroups()) == 3
    for before, after, row in zip(old.numpy(), rep.decode().numpy(), target.numpy(), strict=True):
        kept, dropped = np.flatnonzero(before), np.flatnonzero(before == 0)
        weakest = kept[np.abs(row[kept]).argmin()]
        strongest = dropped[np.abs(row[dropped]).argmax()]
        wanted = before.copy()
        wanted[weakest], wanted[strongest] = 0.0, row[strongest]
        np.testing.assert_array_equal(after, wanted)


@each
@some
@given(seed=SEEDS, fraction=st.sampled_from([0.2, 1.0]))
def test_the_linearized_v_step_never_raises_a_quadratic(parametrization, seed, fraction):
    """Target y - g / L, L the largest eigenvalue: phi(x) <= bound(x) <= bound(y) = phi(y)."""
    root, start, center = gaussian(seed, 8, 8), gaussian(seed + 1, 4, 8), gaussian(seed + 2, 4, 8)
    hessian = root @ root.T / 8

    def phi(w):
        return float((((w - center) @ hessian) * (w - center)).sum() / 2)

    smoothness = float(torch.linalg.eigvalsh(hessian)[-1])
    rep = parametrization.fit(start)
    values = [phi(rep.decode())]
    for _ in range(8):
        weight = rep.decode()
        target = weight - (weight - center) @ hessian / smoothness
        step(rep, target, rounding=Nearest(), subspace=Greedy(fraction))
        values.append(phi(rep.decode()))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(values))


@each
@pytest.mark.parametrize("values", [AdamValues(), SGDValues(momentum=0.9)], ids=["adam", "sgd"])
def test_moments_follow_their_nonzeros(parametrization, values):
    """Against moments kept densely: an entry's own where it stays, 0 where it enters."""
    parameter = nn.Parameter(gaussian(0, 4, 8))
    rep = parametrization.fit(parameter)
    with torch.no_grad():
        parameter.copy_(rep.decode())
    optimizer = PVOptimizer(
        torch.optim.SGD([parameter], lr=0.3), {parameter: rep}, values=values, subspace=AllGroups()
    )
    dense = {moment: torch.zeros(4, 8, dtype=DOUBLE) for moment in values.moments}
    moved, codes = 0, rep.group_codes().clone()
    for number in range(12):
        optimizer.zero_grad()
        parameter.grad = parameter.detach() - gaussian(number // 4 + 1, 4, 8)
        gradient, old = parameter.grad.clone(), parametrization.support(rep)
        optimizer.step()
        moved += int((rep.group_codes() != codes).any())
        codes = rep.group_codes().clone()
        new = parametrization.support(rep)
        for name, moment in dense.items():
            if name == "momentum":
                moment.mul_(0.9).add_(gradient)
            elif name == "exp_avg":
                moment.mul_(0.9).add_(0.1 * gradient)
            else:
                moment.mul_(0.95).add_(0.05 * gradient.square())
            moment.mul_(old).mul_(new)
            kept = optimizer.state[parameter][f"pv.moments.{name}.values"]
            spread = Representation(parametrization, rep.codes, {"values": kept}, rep.shape)
            torch.testing.assert_close(spread.decode(), moment)
    assert moved >= 3


@pytest.mark.parametrize(("rows", "columns"), [(3, 8), (2, 5), (1, 17)])
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_a_mask_takes_a_bit_for_each_entry_in_whole_bytes(rows, columns, per):
    p = Sparse(density=0.4, per=per)
    groups, size = (rows, columns) if per == "row" else (1, rows * columns)
    stream = p.streams((rows, columns))["support"]
    assert stream.shape == (groups, 1, -(-size // 8))
    assert stream.stored_bits == 8 * groups * -(-size // 8)
    support = gaussian(rows, rows, columns)
    rep = p.fit(support)
    bits = np.unpackbits(rep.codes["support"].numpy(), axis=2, bitorder="little")[..., :size]
    assert np.array_equal(bits.reshape(rows, columns), rep.decode().numpy() != 0)


def test_masks_of_another_number_of_ones_are_refused():
    mask = torch.tensor([[[0b0011]], [[0b0001]]], dtype=torch.uint8)
    words = r"codes of 'support' must keep 2 of 4 entries of every group, got 1\.\.2"
    parameter = nn.Parameter(torch.randn(2, 4))
    rep = Sparse(density=0.5).fit(parameter)
    with pytest.raises(ValueError, match=words):
        rep.check_codes({"support": mask})
    with pytest.raises(ValueError, match="'support' must be 0 beyond the last entry of a group"):
        rep.check_codes({"support": torch.full((2, 1, 1), 0b110000, dtype=torch.uint8)})
    optimizer = PVOptimizer(torch.optim.SGD([parameter], lr=0.1), {parameter: rep})
    saved = optimizer.state_dict()
    saved["state"][0]["pv.codes.support"] = mask
    with pytest.raises(ValueError, match=r"parameter 0.*Sparse.*must keep 2 of 4"):
        optimizer.load_state_dict(saved)


def test_represent_refuses_supports_of_another_size():
    with pytest.raises(ValueError, match="support must have 2 entries in every group"):
        Sparse(density=0.5).represent(torch.ones(2, 4), torch.eye(2, 4).bool())


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "words"),
    [
        (Sparse, {"density": 0.0}, ValueError, r"density must be in \(0, 1\], got 0.0"),
        (Sparse, {"density": 1.5}, ValueError, "density"),
        (Sparse, {"density": float("nan")}, ValueError, "density"),
        (Sparse, {"density": "half"}, TypeError, "density must be a float, got 'half'"),
        (Sparse, {"density": True}, TypeError, "density"),
        (Sparse, {"density": 0.5, "per": "column"}, ValueError, "per must be 'row' or 'tensor'"),
        (SparseNM, {"nonzeros": 4, "group_size": 4}, ValueError, r"nonzeros must be in 1..3"),
        (SparseNM, {"nonzeros": 1, "group_size": 17}, ValueError, r"group_size must be in 2..16"),
        (SparseNM, {"nonzeros": 1.0, "group_size": 4}, TypeError, "nonzeros must be an int"),
    ],
)
def test_bad_settings_cannot_be_made(kind, arguments, error, words):
    with pytest.raises(error, match=words):
        kind(**arguments)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"group_size=4 does not divide the 6 columns"):
        SparseNM(nonzeros=2, group_size=4).fit(torch.ones(2, 6))


def test_codes_per_group_depend_on_the_shape():
    for p, shape in (
        (Sparse(density=0.5), (3, 1, 2)),
        (Sparse(density=0.5, per="tensor"), (1, 1, 5)),
        (SparseNM(nonzeros=2, group_size=4), (3, 3, 1)),
    ):
        assert p.streams((3, 12))["support"].shape == shape


@pytest.mark.parametrize(
    ("text", "parametrization"),
    [
        ("sparse:50%", Sparse(density=0.5)),
        ("sparse:33.3%", Sparse(density=0.333)),
        ("sparse:7%", Sparse(density=0.07)),
        ("sparse:10%:tensor", Sparse(density=0.1, per="tensor")),
        ("2:4", SparseNM(nonzeros=2, group_size=4)),
        ("1:16", SparseNM(nonzeros=1, group_size=16)),
    ],
)
def test_short_names(text, parametrization):
    found = PARAMETRIZATIONS.parse(text)
    assert isinstance(found, SparseSupport)
    assert found == parametrization
    assert PARAMETRIZATIONS.name(parametrization) == text
    with pytest.raises(ValueError, match="density"):
        PARAMETRIZATIONS.parse("sparse:101%")
