"""Weights whose rows fully_shard has shared out over processes: the same bits on any number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sharding
import torch
from hypothesis import given
from hypothesis import strategies as st
from schemes import PARAMETRIZATIONS, SHAPE
from torch import Tensor
from torch.nn.functional import pad

from pvopt import Representation
from pvopt.engine.exchange import Channel
from pvopt.engine.sharded_search import Share, places_among
from pvopt_kernels import largest


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of four processes has found."""
    folder: Path = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-W", "ignore", sharding.__file__, str(folder)]
    subprocess.run(command, check=True, timeout=300)
    paths = [folder / f"{rank}.pt" for rank in range(sharding.PROCESSES)]
    results = [torch.load(path, weights_only=False) for path in paths]
    errors = [error for each in results for error in each.values() if isinstance(error, str)]
    assert not errors, "\n".join(errors)
    return results


def farthest(left: Any, right: Any) -> float:
    """Return the largest difference of nested tensors."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        return max(farthest(left[key], right[key]) for key in left)
    if isinstance(left, Tensor):
        return float((left.double() - right.double()).abs().max())
    return 0.0


@pytest.mark.parametrize("name", list(sharding.RULES))
def test_one_two_and_four_processes_have_the_same_bits(assert_same, found, name):
    one = found[0]["equal_bits"][f"{name} on 1"]
    for process, size in [(1, 2), (2, 2), (0, 4), (1, 4), (2, 4), (3, 4)]:
        assert_same(one, found[process]["equal_bits"][f"{name} on {size}"], f"{process}, {size}")
    moved = one["counts"][-1]
    assert any(moved.values())


@pytest.mark.parametrize("name", [n for n, (steps, *_) in sharding.RULES.items() if steps < 5])
def test_a_model_that_is_not_sharded_has_the_same_bits_but_for_sums(assert_same, found, name):
    """Sums over all rows, of codebooks and tables, are rounded in single precision there."""
    one, alone = found[0]["equal_bits"][f"{name} on 1"], found[3]["equal_bits"][f"{name} unsharded"]
    if sharding.RULES[name][1] is sharding.GRIDS:
        assert_same(one, alone)
    assert farthest(one, alone) < 1e-6
    assert one["counts"] == alone["counts"]


def test_three_processes_differ_by_the_rounding_of_gradients(found):
    results = found[0]["equal_bits"]
    assert farthest(results["greedy on 1"], results["greedy on 3"]) < 1e-6
    assert results["greedy on 1"]["counts"] == results["greedy on 3"]["counts"]


def test_a_step_makes_a_constant_number_of_collectives(found):
    """Whatever the number of weights: sums, then keys, then the trust region, then counts."""
    counts = found[0]["equal_bits"]["collectives"]
    later = {name: set(steps[1:]) for name, steps in counts.items()}
    assert later == {
        "straight-through": {2},
        "random": {4},
        "greedy": {4},
        "grids": {4},
        "uniform": {5},
        "measured": {5},
        "all in order": {4},
    }
    # The first step looks at the weights closely, and at the gradients to break ties.
    assert max(steps[0] for steps in counts.values()) <= 7


@pytest.mark.parametrize("process", range(4))
def test_a_checkpoint_of_four_processes_goes_on_in_any_number(assert_same, found, process):
    results = found[process]["checkpoints"]
    others = [key for key in results if key != "continued"]
    for key in others:
        if key in ("on 1", "on 2", "on 4"):
            assert_same(results["continued"], results[key], key)
        assert farthest(results["continued"], results[key]) < 1e-6
    assert (
        others
        == [["on 1", "on 3", "on 4"], *2 * [["on 2", "on 3", "on 4"]], ["on 4", "on None"]][process]
    )


def test_all_processes_take_a_step_or_none_does(found):
    results = [each["faults"] for each in found]
    assert "parameter 2 of group 0" in results[2]["not a number"]
    for result in results:
        assert result["not a number"].startswith("NonFiniteGradientError: ")
        assert result["changed weight"].startswith("WeightsChangedError: '1.weight'")
        assert result["unchanged"]
        assert result["goes on"]
    assert "finite numbers in values.codebooks" in results[3]["bad state"]
    assert all(result["bad state"].startswith("ProcessesError: ") for result in results[:3])


def test_accumulation_copies_of_shards_and_kept_weights(assert_same, found):
    one = found[0]["ways"]["accumulated on 1"]
    for process, size in [(1, 2), (2, 2), (0, 4), (3, 4)]:
        assert_same(one, found[process]["ways"][f"accumulated on {size}"])
    for result in (each["ways"] for each in found):
        assert_same(found[0]["ways"]["greedy with copies"], result["greedy with copies"])
        assert_same(found[0]["ways"]["greedy with none"], result["greedy with none"])


def test_copies_that_differ_are_found_by_all_processes_when_they_are_compared(found):
    expected = {"whole": "'1.weight'", "common": "'0.weight'", "shard": "'1.weight'"}
    for result in (each["replicas"] for each in found):
        for name, weight in expected.items():
            first, second = result[name]
            assert first == "nothing"
            assert second.startswith("ProcessesError: ")
            assert weight in second
            # Another gradient follows from another whole weight.
            assert "the processes hold different codes" in second


def test_a_process_that_dies_in_a_step_stops_the_others_at_the_weights_before_it(found):
    for result in (each["killed"] for each in found[:3]):
        assert result["error"].startswith("ProcessesError: one of the 4 processes")
        assert result["unchanged"]


REFUSALS = {
    "rotation": ("TypeError", "lives in another space"),
    "trellis": ("TypeError", "depend on each other"),
    "rows of a group": ("TypeError", "not a multiple of the 4 rows of a group"),
    "gain": ("ValueError", "AllGroups, Greedy, Uniform and Proportional"),
    "metric": ("ValueError", "metric must be None"),
    "sharded last": ("WeightsChangedError", "call fully_shard first"),
    "save": ("ValueError", "weights.gathered() returns representations of all rows"),
    "broadcast": ("ValueError", "call it before fully_shard"),
    "columns": ("TypeError", "only rows can be shared out"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_what_cannot_work_is_refused_with_what_can(found, case):
    kind, part = REFUSALS[case]
    for result in (each["refusals"] for each in found):
        assert result[case].startswith(kind)
        assert part in result[case]


@pytest.mark.parametrize("name", list(PARAMETRIZATIONS))
def test_rows_of_a_weight_decode_to_its_rows(name):
    parametrization = PARAMETRIZATIONS[name]
    generator = torch.Generator().manual_seed(0)
    rep = parametrization.fit(torch.randn(SHAPE, generator=generator))
    if parametrization.common_values is None:
        with pytest.raises(ValueError, match="depend on each other"):
            rep.clone().keep_rows_(2, 4)
        return
    weight, part = rep.decode(), rep.clone()
    part.keep_rows_(2, 4)
    assert torch.equal(part.decode(), weight[2:])
    same = Representation(parametrization, part.codes, part.values, (4, *SHAPE[1:]))
    assert torch.equal(same.decode(), weight[2:])


@given(
    keys=st.lists(st.integers(-2, 2), min_size=6, max_size=6),
    counts=st.sampled_from([(3, 3), (4, 2), (2, 2, 2), (3, 3, 0), (6,)]),
    count=st.integers(1, 6),
)
def test_all_processes_select_what_one_would_ties_and_all(keys, counts, count):
    whole = torch.tensor([keys], dtype=torch.float32)
    selected = largest(whole, count)[1][0].tolist()
    most, found = min(count, max(counts)), []
    parts = [
        largest(own, min(count, own.shape[1])) if own.shape[1] else None
        for own in whole.split(list(counts), dim=1)
    ]
    every = torch.stack(
        [pad(p[0] if p else whole[:, :0], (0, most - (p[0].shape[1] if p else 0))) for p in parts]
    )
    for rank, part in enumerate(parts):
        share = Share(Channel(None, "cpu"), counts, rank)
        places = places_among(every, share, count)[0].tolist()
        if part is None:
            assert min(places) >= count
        else:
            groups = (part[1][0] + share.first).tolist()
            found += [(p, g) for p, g in zip(places, groups, strict=True) if p < count]
    assert [group for _, group in sorted(found)] == selected
