"""Does every recipe work out of the box, with the learning rate that a user already has?

``python -m benchmarks.recipes [--quick] [--json FILE] [--tasks A,B] [--methods A,B]``
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.recipes.experiment import DENSE_START, METHODS, RECIPES, measure
from benchmarks.recipes.tasks import TASKS
from benchmarks.report import Check, Report, format_table, parser

_DEFAULTS = {"default": "default", DENSE_START: "default with a dense start"}
_STILL = ("continuous_only", "naive_pv")  # moves none by definition; too short by theory


def _finished(file: Path | None, settings: dict[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Return the runs that an interrupted benchmark of the same settings has left."""
    if file is None or not file.exists():
        return {}
    found = json.loads(file.read_text())
    runs = found["rows"] if found["settings"] == settings else []
    return {(run["task"], run["method"], run["seed"]): run for run in runs}


def _spread(runs: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return mean and standard deviation of the losses."""
    losses = [run["loss"] for run in runs]
    return statistics.mean(losses), statistics.stdev(losses) if len(losses) > 1 else 0.0


def checks_of(runs: Sequence[dict[str, Any]]) -> list[Check]:
    """Return the claims: the default is not behind, codes move, nothing is worse than rounding.

    The default is looked at with and without a start at the dense weights. Behind is a mean loss
    that is larger by more than the standard deviation of a difference between two runs.

    Args:
        runs: rows of the report.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        found.setdefault(run["task"], {}).setdefault(run["method"], []).append(run)
    checks = []
    for task, methods in found.items():
        for method, rows in methods.items():
            other, spread = _spread(rows)
            for default, words in _DEFAULTS.items():
                if default in methods and method not in (*_DEFAULTS, "full precision", "rounding"):
                    mean, own = _spread(methods[default])
                    claim = f"{task}: loss of the {words} less that of {method}"
                    checks.append(Check.at_most(claim, mean - other, (own**2 + spread**2) ** 0.5))
            if method in RECIPES:
                rounded = _spread(methods["rounding"])[0]
                claim = f"{task}: loss of {method} over that of rounding"
                checks.append(Check.at_most(claim, other / rounded, 1.0))
            if method in RECIPES and method not in _STILL:
                least = min(row["moved"] for row in rows)
                claim = f"{task}: changes of code per group with {method}"
                checks.append(Check(claim, least, "> 0", least > 0))
    return checks


def _table(runs: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each method, with mean and spread of each task."""
    rows = []
    for method in METHODS:
        own = [run for run in runs if run["method"] == method and run["seed"] in seeds]
        row: dict[str, Any] = {"method": method}
        for task in TASKS:
            some = [run for run in own if run["task"] == task]
            if some:
                mean, spread = _spread(some)
                moved = statistics.mean(run["moved"] for run in some)
                row[task] = f"{mean:.3f} ± {spread:.3f}" + (f" ({moved:.2g})" if moved else "")
        if len(row) > 1:
            row["train_s"] = sum(run["train_s"] for run in own) / len(seeds)
            rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run everything, print table and checks, write what was asked for."""
    options = parser("recipes", __doc__ or "")
    options.add_argument("--tasks", default=",".join(TASKS), help="comma-separated names")
    options.add_argument("--methods", default=",".join(METHODS), help="comma-separated names")
    options.add_argument(
        "--split",
        choices=("validation", "test"),
        default="test",
        help="that losses are of; settings are chosen by the validation split",
    )
    chosen = options.parse_args(arguments)
    tasks, methods = chosen.tasks.split(","), chosen.methods.split(",")
    for name, known in (*((t, TASKS) for t in tasks), *((m, METHODS) for m in methods)):
        if name not in known:
            options.error(f"unknown name {name!r}; choose from {', '.join(known)}")
    torch.set_num_threads(1)
    seeds = [0] if chosen.quick else [0, 1, 2]
    settings = {"quick": chosen.quick, "split": chosen.split, "seeds": seeds}
    report = Report("recipes", settings, packages=("torch", "scikit-learn", "transformers"))
    finished = _finished(chosen.json, settings)
    for task in tasks:
        for seed in seeds:
            for method in methods:
                run = finished.get((task, method, seed))
                if run is None:
                    steps = 12 if chosen.quick else TASKS[task].steps
                    try:
                        run = measure(task, method, seed, steps=steps, split=chosen.split)
                    except ImportError as problem:
                        print(f"without {method} on {task}: {problem}", flush=True)
                        continue
                report.rows.append(run)
                if chosen.json:  # a run that is cut short goes on from here
                    report.write_json(chosen.json)
        print(f"{task} done", flush=True)
    if {"default", "rounding"} <= set(methods):
        report.checks = checks_of(report.rows)
    columns = {"method": "method", **{task: task for task in tasks}, "train_s": "CPU s"}
    print(format_table(_table(report.rows, seeds), columns))
    print("loss in nats ± standard deviation over the seeds (changes of code per group)\n")
    print(report.format_checks())
    if chosen.json:
        report.write_json(chosen.json)
    return report


if __name__ == "__main__":
    main()
