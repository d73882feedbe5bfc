"""Sparse weights: supports against enumeration, hard thresholding, what follows a nonzero."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from pvopt import (
    AdamValues,
    AllGroups,
    Forced,
    Greedy,
    Nearest,
    PVOptimizer,
    QuantizedWeights,
    Representation,
    SGDValues,
    Sparse,
    SparseNM,
    Ternary,
    quantize_,
    v_step,
)
from pvopt.formats.native import CheckpointError, load, save, storage_report
from pvopt.formats.native.words import unpack_codes
from pvopt.parametrizations.sparse_support import SparseSupport
from pvopt.parametrizations.supports import best_supports
from pvopt.tuning.formats import format_name, parse_format

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=25, deadline=None, derandomize=True)
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
    rep = parametrization.fit(weight, metric=metric if with_metric else None)
    decoded, support = rep.decode(), parametrization.support(rep)
    assert torch.equal(decoded, torch.where(support, weight, 0.0))
    energy = parametrization.split(metric * weight.square()).numpy()
    count = parametrization.num_nonzeros((4, 8))
    best = -np.sort(-energy, axis=1)[:, :count].sum(1)
    kept = parametrization.split(support * metric * weight.square()).numpy().sum(1)
    np.testing.assert_allclose(kept, best, rtol=1e-12)


@each
@some
@given(seed=SEEDS)
def test_from_its_own_values_a_v_step_is_hard_thresholding(parametrization, seed):
    """Where the target agrees with the nonzeros, the new weight is the target, cut."""
    rep = parametrization.fit(gaussian(seed, 4, 8))
    old = parametrization.support(rep)
    target = torch.where(old, rep.decode(), 3 * gaussian(seed + 1, 4, 8))
    decoded = parametrization.decode_groups(rep)
    v_step(rep, target, decoded, rounding=Nearest(), subspace=AllGroups())
    wanted = parametrization.fit(target).decode()
    assert torch.equal(rep.decode(), wanted)
    assert torch.equal(decoded, parametrization.decode_groups(rep))


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
    goal, codes = parametrization.split(target)[groups], new.flat_codes[groups].long()
    moved = parametrization.decode_moved(goal, rep, groups, codes)
    parametrization.move_(goal, rep, groups, codes)
    torch.testing.assert_close(parametrization.decode_groups(rep, groups), moved)
    chosen = torch.zeros(num_groups, 1, dtype=torch.bool)
    chosen[groups] = True
    chosen = chosen.expand(-1, rep.layout.group_size)
    chosen = parametrization.merge(chosen.contiguous(), rep.shape)
    wanted = torch.where(old, before.decode(), target)
    wanted = torch.where(parametrization.support(new), wanted, 0.0)
    wanted = torch.where(chosen, wanted, before.decode())
    assert torch.equal(rep.decode(), wanted)
    whole = before.clone()
    parametrization.move_(parametrization.split(target), whole, None, new.flat_codes.long())
    other = before.clone()
    every = torch.arange(num_groups)
    parametrization.move_(parametrization.split(target), other, every, new.flat_codes.long())
    assert torch.equal(whole.decode(), other.decode())


@some
@given(seed=SEEDS)
def test_forced_swaps_the_weakest_kept_for_the_strongest_dropped(seed):
    """Where the target is the weight plus little, the second best support differs in one entry."""
    weight = gaussian(seed, 3, 8)
    rep = Sparse(density=0.5).fit(weight)
    old, target = rep.decode(), weight
    decoded = Sparse(density=0.5).decode_groups(rep)
    assert v_step(rep, target, decoded, rounding=Forced(), subspace=AllGroups()) == 3
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
        decoded = parametrization.decode_groups(rep)
        v_step(rep, target, decoded, rounding=Nearest(), subspace=Greedy(fraction))
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
    moved, num_codes = 0, rep.codes.clone()
    for step in range(12):
        optimizer.zero_grad()
        parameter.grad = parameter.detach() - gaussian(step // 4 + 1, 4, 8)
        gradient, old = parameter.grad.clone(), parametrization.support(rep)
        optimizer.step()
        moved += int((rep.codes != num_codes).any())
        num_codes = rep.codes.clone()
        new = parametrization.support(rep)
        for name, moment in dense.items():
            if name == "momentum":
                moment.mul_(0.9).add_(gradient)
            elif name == "exp_avg":
                moment.mul_(0.9).add_(0.1 * gradient)
            else:
                moment.mul_(0.95).add_(0.05 * gradient.square())
            moment.mul_(old).mul_(new)
            kept = optimizer.state[parameter][f"values.values.{name}"]
            spread = Representation(parametrization, rep.codes, {"values": kept}, rep.shape)
            torch.testing.assert_close(spread.decode(), moment)
    assert moved >= 3


@pytest.mark.parametrize(
    "parametrization",
    [
        Sparse(density=0.37),
        Sparse(density=0.2, per="tensor"),
        SparseNM(nonzeros=2, group_size=4),
        SparseNM(nonzeros=4, group_size=8),
        Ternary(group_size=8),
    ],
    ids=str,
)
def test_a_file_has_the_stated_bits(parametrization, tmp_path):
    """Packed codes and values to the byte; the rest of the file is its header."""
    model = nn.Linear(24, 5, bias=False)
    weights = quantize_(model, parametrization)
    folder = save(tmp_path / "x", model, weights)
    report = storage_report(folder)
    bits = 24 * 5 * parametrization.bits_per_weight((5, 24), value_bits=32)
    packed = report.weights[0].code_bytes + report.weights[0].value_bytes
    assert 0 <= 8 * packed - bits < 8  # the last byte is filled up
    with safe_open(str(folder / "model.safetensors"), "pt") as stored:
        assert sum(stored.get_tensor(name).nbytes for name in stored.keys()) == packed  # noqa: SIM118
    size = (folder / "model.safetensors").read_bytes()
    assert len(size) == 8 + int.from_bytes(size[:8], "little") + packed  # length, header, data
    loaded = load(folder, nn.Linear(24, 5, bias=False))
    assert torch.equal(loaded.model.weight, model.weight)
    assert loaded.weights["weight"].parametrization == parametrization


def test_masks_of_another_number_of_ones_are_refused(tmp_path):
    mask = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 0]]], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"codes must keep 2 of 4 entries.*got 1..2"):
        Sparse(density=0.5).check_codes(mask, (2, 4))
    with pytest.raises(ValueError, match=r"codes must keep 2 of 4 entries"):
        unpack_codes(
            torch.tensor([0b0111], dtype=torch.uint8), Sparse(density=0.5), (1, 4), torch.uint8
        )
    parameter = nn.Parameter(torch.randn(2, 4))
    rep = Sparse(density=0.5).fit(parameter)
    optimizer = PVOptimizer(torch.optim.SGD([parameter], lr=0.1), {parameter: rep})
    saved = optimizer.state_dict()
    saved["state"][0]["pv.codes"] = mask
    with pytest.raises(ValueError, match=r"parameter 0.*Sparse.*codes must keep 2 of 4"):
        optimizer.load_state_dict(saved)
    model = nn.Linear(4, 2, bias=False)
    broken = Representation(Sparse(density=0.5), mask, {"values": torch.ones(2, 2)}, (2, 4))
    with pytest.raises((ValueError, CheckpointError), match="codes must keep 2 of 4"):
        save(tmp_path / "x", model, QuantizedWeights(model, {"weight": broken}))


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
    assert Sparse(density=0.5).code_shape((3, 8)) == (3, 1, 8)
    assert Sparse(density=0.5, per="tensor").code_shape((3, 8)) == (1, 1, 24)
    assert SparseNM(nonzeros=2, group_size=4).code_shape((3, 8)) == (3, 2, 1)
    with pytest.raises(TypeError, match="code_shape"):
        _ = Sparse(density=0.5).codes_per_group


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
    found = parse_format(text)
    assert isinstance(found, SparseSupport)
    assert found == parametrization
    assert format_name(parametrization) == text
    with pytest.raises(ValueError, match="density"):
        parse_format("sparse:101%")
