"""The tables of a page: a column for each run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .runs import ReportedRun

__all__ = ["Row", "settings_rows", "summary_rows"]


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Args:
        label: what is compared.
        values: one for each run, as shown.
    """

    label: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs do not agree."""
        return len(set(self.values)) > 1


def summary_rows(runs: Sequence[ReportedRun]) -> list[Row]:
    """Return what the runs have come to; rows of which no run knows anything are left out."""
    lines: dict[str, Callable[[ReportedRun], Any]] = {
        "state": lambda run: run.state,
        "original": lambda run: run.metadata.get("model"),
        "formats": _formats,
        "bits per quantized weight": lambda run: _bits(run, "bits_per_weight_16"),
        "bits per weight of the whole file": lambda run: _bits(run, "total_bits_per_weight"),
        "model.safetensors": lambda run: run.storage and f"{run.storage.file_bytes / 1e6:,.1f} MB",
        "perplexity of the original": lambda run: _evaluated(run, "teacher", -1, "perplexity"),
        "perplexity at the start": lambda run: _evaluated(run, "student", 0, "perplexity"),
        "perplexity now": lambda run: _evaluated(run, "student", -1, "perplexity"),
        "KL(original ‖ model), first": lambda run: _compared(run, 0, "divergence", ".4g"),
        "KL(original ‖ model), last": lambda run: _compared(run, -1, "divergence", ".4g"),
        "same likeliest token, first": lambda run: _compared(run, 0, "agreement", ".1%"),
        "same likeliest token, last": lambda run: _compared(run, -1, "agreement", ".1%"),
        "evaluated on": _evaluated_on,
        "codes changed": _changed,
        "seconds per step, median": _seconds,
        "tokens per second, median": _speed,
        "calibration": lambda run: _pairs(run.metadata.get("calibration")),
    }
    return _rows(runs, lines)


def settings_rows(runs: Sequence[ReportedRun]) -> list[Row]:
    """Return all settings and inputs of the runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    inputs = dict.fromkeys(key for run in runs for key in _mapping(run.metadata.get("inputs")))
    lines: dict[str, Callable[[ReportedRun], Any]] = {}
    for key in keys:
        lines[key] = lambda run, key=key: run.settings.get(key)
    for key in inputs:
        lines[f"input: {key}"] = lambda run, key=key: _mapping(run.metadata.get("inputs")).get(key)
    return _rows(runs, lines)


def _rows(
    runs: Sequence[ReportedRun], lines: Mapping[str, Callable[[ReportedRun], Any]]
) -> list[Row]:
    found = {label: [value(run) for run in runs] for label, value in lines.items()}
    return [
        Row(label, tuple("–" if value is None else str(value) for value in values))
        for label, values in found.items()
        if any(value is not None for value in values)
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _pairs(value: Any) -> str | None:
    return ", ".join(f"{key} {part}" for key, part in _mapping(value).items()) or None


def _formats(run: ReportedRun) -> str | None:
    if run.storage is None:
        return None
    names = dict.fromkeys(weight.scheme.name for weight in run.storage.weights)
    return ", ".join(names)


def _bits(run: ReportedRun, what: str) -> str | None:
    return None if run.storage is None else f"{getattr(run.storage, what):.3f}"


def _evaluated(run: ReportedRun, model: str, place: int, what: str) -> str | None:
    found = run.evaluations(model)
    if not found:
        return None
    value = found[place].get(what)
    return "overflow" if value is None else f"{value:.5g}"


def _compared(run: ReportedRun, place: int, what: str, format: str) -> str | None:
    """Return what was compared with the original before the first step, or last after it."""
    found = [e for e in run.evaluations("student") if e.get(what) is not None]
    if not found or (place == -1 and found[-1]["step"] == 0):
        return None
    return f"{found[place][what]:{format}} at step {found[place]['step']}"


def _evaluated_on(run: ReportedRun) -> str | None:
    found = run.evaluations("student") or run.evaluations("teacher")
    if not found:
        return None
    last = found[-1]
    shown = f"{last.get('windows')} windows of {last.get('context_length')} tokens"
    return f"{shown}, {last.get('dtype')}"


def _changed(run: ReportedRun) -> str | None:
    steps = run.steps
    return f"{sum(step['changed_groups'] for step in steps):,} in all steps" if steps else None


def _seconds(run: ReportedRun) -> str | None:
    taken = [step["forward_backward_s"] + step["optimizer_s"] for step in run.steps]
    if not taken:
        return None
    optimizer = statistics.median(step["optimizer_s"] for step in run.steps)
    return f"{statistics.median(taken):.3g}, of which {optimizer:.2g} in the optimizer"


def _speed(run: ReportedRun) -> str | None:
    found = [step["tokens_per_s"] for step in run.steps if step["tokens_per_s"] is not None]
    return f"{statistics.median(found):,.0f}" if found else None
