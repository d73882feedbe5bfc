"""Smoothness constants of a language model's loss along random subsets of its weights.

``python -m benchmarks.smoothness [--quick] [--json FILE] [--plots DIR]``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.report import Check, Report, format_table, parser
from pvopt.llm import load_model

from .experiment import HAND_FOUND, Settings, code_rates, constants, sequences

PARTS = ("constants", "rates")

_OPTIONS = ("model", "text", "batch", "length", "path_steps", "draws", "seed")

_CONSTANTS = {
    "fraction": "share",
    "quotient": "quotients",
    "quotient_over_full": "of the whole",
    "power": "power iteration",
    "power_over_full": "of the whole",
}
_RATES = {
    "base": "optimizer",
    "subspace": "groups",
    "fraction": "share",
    "smoothness": "L_S",
    "by_smoothness": "lr by smoothness",
    "along_update": "lr along update",
}


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measure, print tables and checks, write what was asked for."""
    options = parser("smoothness", __doc__ or "")
    for field in fields(Settings):
        if field.name in _OPTIONS:
            options.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    options.add_argument("--only", choices=PARTS, help="measure one part only")
    options.add_argument(
        "--start", metavar="DIR", type=Path, help="checkpoint to use instead of a new k-means start"
    )
    given = options.parse_args(arguments)
    settings = Settings.quick() if given.quick else Settings()
    chosen = {name: getattr(given, name) for name in _OPTIONS}
    settings = replace(settings, **{n: value for n, value in chosen.items() if value is not None})
    report = Report("smoothness", asdict(settings), packages=("torch", "transformers", "numpy"))
    clock = _Clock(report.settings)
    language_model = load_model(settings.model)
    ids = sequences(settings, language_model)
    clock.lap("load")
    if given.only in (None, "constants"):
        rows = constants(settings, language_model.model, ids, _show)
        clock.lap("constants")
        report.rows += rows
        report.checks += _decay_checks(rows)
        if given.json is not None:
            report.write_json(given.json)  # a long run cut short still has its rows
        print(f"\nlinear layers of {settings.model}, next-token loss\n")
        print(format_table(rows, _CONSTANTS), flush=True)
        if given.plots is not None:
            from .plots import decay  # matplotlib is needed for pictures only

            title = f"Loss of {settings.model} along random subsets of its linear weights"
            print(decay(rows, given.plots, title=title))
    if given.only in (None, "rates"):
        rows = code_rates(settings, language_model.model, ids, given.start)
        clock.lap("rates")
        report.rows += rows
        report.checks += _rate_checks(settings, rows)
        form = f"{settings.num_codebooks}x{settings.bits}g{settings.group}"
        print(f"\nlearning rates of the codes, {form}, distillation\n")
        print(format_table(rows, _RATES))
    print(f"\n{report.format_checks()}")
    if given.json is not None:
        report.write_json(given.json)
    print("\n" + ", ".join(f"{k} {v:.0f}" for k, v in report.settings.items() if k[-2:] == "_s"))
    return report


class _Clock:
    """Wall-clock and processor seconds of the stages: other work on the machine shows."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def lap(self, stage: str) -> None:
        """Note the seconds since the lap before."""
        wall, processor = time.perf_counter(), time.process_time()
        self._settings[f"{stage}_wall_s"] = wall - self._wall
        self._settings[f"{stage}_processor_s"] = processor - self._processor
        self._wall, self._processor = wall, processor


def _show(done: int, total: int) -> None:
    """Count on a terminal; a log file needs no progress."""
    if sys.stderr.isatty():
        print(f"\r{done} of {total} constants", end="", file=sys.stderr, flush=True)


def _decay_checks(rows: list[dict[str, Any]]) -> list[Check]:
    places = "power_by_draw_and_step"
    growth = max(
        small / large
        for row, wider in pairwise(rows)
        for smalls, larges in zip(row[places], wider[places], strict=True)
        for small, large in zip(smalls, larges, strict=True)
    )
    ratio = max(row["quotient"] / row["power"] for row in rows)
    return [
        Check.at_most("power iteration: L_S over that of the next larger set, at most", growth, 1),
        Check.at_most("power iteration: 5 % over 100 %", rows[0]["power_over_full"], 0.2),
        Check.at_most("quotients: 5 % over 100 %", rows[0]["quotient_over_full"], 0.2),
        Check.at_most("quotients over power iteration, at most", ratio, 1),
    ]


def _rate_checks(settings: Settings, rows: list[dict[str, Any]]) -> list[Check]:
    if settings.model != "smollm2":
        return []  # the learning rate was found by hand for this model
    row = rows[0]  # Adafactor, greedy, 1 %: what the hand-found one belongs to
    checks = []
    for name, rule in (("along the update", "along_update"), ("by smoothness", "by_smoothness")):
        factor = max(row[rule] / HAND_FOUND, HAND_FOUND / row[rule])
        name = f"Adafactor: factor between the rate {name} and {HAND_FOUND:g}, found by hand"
        checks.append(Check.at_most(name, factor, 3, note=f"suggested {row[rule]:.3g}"))
    return checks


if __name__ == "__main__":
    main()
