"""The benchmarks of operations and of steps, on inputs that take milliseconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels.__main__ import OURS, checks_of, rows_of
from benchmarks.kernels.cases import Case
from benchmarks.step.calls import calls_of
from benchmarks.step.memory import peak_beyond
from benchmarks.step.profile import PARTS, REST, parts_of
from benchmarks.step.setups import OPTIMIZERS, Weights, moved
from benchmarks.timing import CLOCKS, Timing, in_turns


def test_competitors_take_turns_and_slow_ones_sit_out():
    calls: list[str] = []
    competitors = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = in_turns(competitors, repeats=3)
    assert calls == ["a", "b"] * 3
    assert times["a"].repeats == times["b"].repeats == 3
    assert in_turns(competitors, repeats=20, limit_s=0.0)["a"].repeats == 5


def test_a_turn_begins_with_a_pause_and_a_warm_up(monkeypatch):
    now = 0.0
    log: list[tuple[str, float]] = []

    def spend(name: str, seconds: float) -> None:
        nonlocal now
        log.append((name, now))
        now += seconds

    fake = SimpleNamespace(perf_counter=lambda: now, sleep=lambda s: spend("sleep", s))
    monkeypatch.setattr("benchmarks.timing.time", fake)
    monkeypatch.setitem(CLOCKS, "wall", fake.perf_counter)
    competitors = {"quick": lambda: spend("quick", 2.0), "slow": lambda: spend("slow", 21.0)}
    times = in_turns(competitors, repeats=2, pause_s=20.0)
    names = [name for name, _ in log]
    first, second = ["sleep", *["quick"] * 4], ["sleep", "slow"]
    # That it is slow is not known at first: the second runs untimed as well.
    assert names == [*first, *second, "slow", *first, *second]
    assert times["quick"].median_s == 2.0
    assert times["slow"].median_s == 21.0


def test_quartiles_enclose_the_median():
    timing = Timing.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (timing.low_s, timing.median_s, timing.high_s) == (2.0, 3.0, 4.0)


def small_case(wrong: float) -> Case:
    x = torch.ones(8)
    competitors = {OURS: lambda: x + wrong, "other": lambda: x + 1.0}
    return Case(
        "sum", competitors, lambda found: float((found - x).abs().max()), 1e-9, "nothing",
        {"other": 1.0, "not installed": 5.0},
    )  # fmt: skip


def test_rows_tell_which_result_is_wrong_and_checks_skip_what_did_not_run():
    case = small_case(0.0)
    ours, other = rows_of(case, repeats=3, clock="wall")
    assert (ours["right"], other["right"], ours["speedup"]) == (True, False, 1.0)
    (check,) = checks_of(case, [ours, other])
    assert check.value == other["speedup"]
    assert check.note


def test_a_wrong_result_of_ours_is_not_timed():
    with pytest.raises(AssertionError, match="sum: wrong by 1"):
        rows_of(small_case(1.0), repeats=1, clock="wall")


SHAPES = [(16, 32), (8, 16)]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "PARQ" not in name])
def test_every_optimizer_moves_every_weight(name):
    weights = Weights.draw(SHAPES)
    before = [parameter.detach().clone() for parameter in weights.parameters]
    assert not moved(weights.parameters, before)
    optimizer = OPTIMIZERS[name](weights)
    optimizer.step()
    optimizer.step()
    assert moved(weights.parameters, before)
    assert weights.count == 16 * 32 + 8 * 16
    assert weights.dense_bytes == 4 * weights.count


def test_parts_of_a_step_add_up():
    optimizer = OPTIMIZERS["PVOptimizer, latents"](Weights.draw(SHAPES))
    optimizer.step()
    before = [getattr(owner, name) for owner, name, _ in PARTS.values()]
    parts = parts_of(optimizer, steps=2, clock="cpu")
    assert set(parts) == {*PARTS, REST}
    assert all(seconds >= 0 for seconds in parts.values())
    after = [getattr(owner, name) for owner, name, _ in PARTS.values()]
    assert all(a is b for a, b in zip(after, before, strict=True))  # nothing is left patched


def test_weights_of_a_shape_take_a_step_with_the_same_calls():
    """All but those of the check for NaN, which looks at every gradient."""
    found = []
    for count in (2, 4):
        optimizer = OPTIMIZERS["PVOptimizer, no latents"](Weights.draw([(16, 32)] * count))
        optimizer.step()
        found.append(calls_of(optimizer.step))
    names = {name for name in found[0].by_name if name.startswith("pvopt.")}
    assert {"pvopt.decode_into.default", "pvopt.better_codes.default"} <= names
    assert all(found[0].by_name[name] == found[1].by_name[name] for name in names)


def test_calls_that_the_host_waits_for_are_counted():
    x = torch.tensor([1.0, 0.0, 2.0])
    for waits in (x.nonzero, lambda: x[x > 0], lambda: float(x[0]), lambda: x.equal(x)):
        assert calls_of(waits).synchronisations == 1
    assert calls_of(lambda: x[torch.tensor([0, 2])]).synchronisations == 0


def test_peak_memory_of_a_tensor():
    found = peak_beyond(lambda: torch.ones(1 << 24).sum())  # 64 MiB
    if found is None:
        pytest.skip("the system does not tell")
    assert 0.9 < found / (4 << 24) < 1.2
