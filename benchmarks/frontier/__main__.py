"""Command line: ``python -m benchmarks.frontier [--quick] [--json FILE] [--plots DIR]``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.processes import in_own_process
from benchmarks.report import Check, Report, format_table, parser

from .experiment import Settings, measure, measure_teacher
from .lineup import ROWS
from .plots import pareto
from .tuned import prepare_tuning, tune

# What a user can set; the rest follows from --quick.
_OPTIONS = {
    "model": str,
    "calibration_text": str,
    "test_text": str,
    "tokens": int,
    "windows": int,
    "precision": str,
    "end_loss": float,
    "asymmetric": float,
    "fine_tune": int,
    "tuned_steps": int,
}
# The tiny model's layers are too small for these codebooks.
_QUICK = ("rtn-4", "gptq-4", "aqlm-1x8g8", "gptq-2", "rtn-2")


def _kept(file: Path, key: str) -> dict[str, Any] | None:
    """Return what an earlier run measured with the same settings, or None."""
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    return found["result"] if found["key"] == key else None


def _stage(file: Path, key: str, function: Any, *arguments: Any) -> dict[str, Any]:
    """Run a stage in its own process, unless its result is there already."""
    result = _kept(file, key)
    if result is None:
        result = in_own_process(function, *arguments)
        file.write_text(json.dumps({"key": key, "result": result}) + "\n")
    return result


def _checks(settings: Settings, teacher_ppl: float, rows: list[dict[str, Any]]) -> list[Check]:
    if settings.model != "smollm2":
        return []
    ppl = {(row["format"], row["method"]): row["ppl"] for row in rows}
    start = {row["format"]: row for row in rows if row["steps"] == 0}
    checks = []
    if "gptq-4" in start:
        ratio = start["gptq-4"]["ppl"] / teacher_ppl
        checks.append(Check.at_most("GPTQ, 4 bits: perplexity over the teacher's", ratio, 1.1))
    if "aqlm-2x8g8" in start:
        gain = 2.8e5 / start["aqlm-2x8g8"]["ppl"]
        checks.append(Check.at_least("AQLM 2x8g8: times better than 2.8e5", gain, 50))
        minutes = start["aqlm-2x8g8"]["minutes"]
        checks.append(Check.at_most("AQLM 2x8g8 of the whole model, minutes", minutes, 30))
    if {"e8p-2", "vq-2"} <= start.keys():
        ratio = start["e8p-2"]["ppl"] / start["vq-2"]["ppl"]
        checks.append(Check.at_most("E8P over VQ at 2 bits, perplexities", ratio, 1))
    if "trellis-2" in start:
        checks.append(Check.at_most("trellis, 2 bits, untuned", start["trellis-2"]["ppl"], 48))
    steps = settings.tuned_steps
    limit = 36 if 48 <= steps < 200 else 31 if steps >= 200 else None
    tuned = ppl.get(("trellis-2", "subspace_pv_ste"))
    if tuned is not None and limit is not None:
        checks.append(Check.at_most(f"trellis, 2 bits, {steps} steps", tuned, limit))
        checks.append(Check.at_most("trellis, 2 bits: 1.25 times the teacher", tuned, 29.4))
    for other in ("ste", "continuous_only"):
        if tuned is not None and ("trellis-2", other) in ppl:
            ratio = tuned / ppl["trellis-2", other]
            checks.append(Check.at_most(f"trellis, 2 bits: subspace_pv_ste over {other}", ratio, 1))
    if ("trellis-3", "subspace_pv_ste") in ppl and steps >= 48:
        checks.append(
            Check.at_most(
                f"trellis, 3 bits, {steps} steps", ppl["trellis-3", "subspace_pv_ste"], 25.5
            )
        )
    return checks


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 whether or not its checks hold."""
    options = parser("frontier", __doc__ or "")
    formats = ", ".join(ROWS).replace("%", "%%")  # argparse formats its help texts
    options.add_argument("--formats", help=f"comma-separated: {formats}")
    for name, kind in _OPTIONS.items():
        options.add_argument(f"--{name.replace('_', '-')}", type=kind)
    options.add_argument("--work", metavar="DIR", type=Path, help="keep (or reuse) rows here")
    arguments = options.parse_args(argv)
    names = list(_QUICK if arguments.quick else ROWS)
    if arguments.formats:
        names = arguments.formats.split(",")
    for name in names:
        if name not in ROWS:
            options.error(f"unknown format {name!r}; choose from {', '.join(ROWS)}")
    settings = Settings.quick() if arguments.quick else Settings()
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    settings = replace(settings, **{n: value for n, value in given.items() if value is not None})
    report = Report("frontier", asdict(settings), packages=("torch", "transformers", "numpy"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        key = settings.key()
        teacher_key = settings.teacher_key()
        teacher = _stage(folder / "teacher.json", teacher_key, measure_teacher, settings)
        report.settings["teacher"] = teacher
        print(f"teacher {teacher['teacher_ppl']:.2f}", flush=True)
        for name in names:
            row = ROWS[name]
            rows = [_stage(folder / f"{name}.json", key, measure, settings, name, folder)]
            if settings.tuned_steps and row.recipes:
                tuned_key = f"{key} {settings.tuned_steps}"
                _stage(folder / "tuning.json", tuned_key, prepare_tuning, settings, folder)
                for recipe in row.recipes:
                    file = folder / f"{name}-{recipe}.json"
                    rows.append(_stage(file, tuned_key, tune, settings, name, recipe, folder))
            report.rows += rows
            report.checks = _checks(settings, teacher["teacher_ppl"], report.rows)
            if arguments.json:  # after every format: a long run cut short still has its rows
                report.write_json(arguments.json)
            for found in rows:
                print(f"{name}, {found['method']}: {found['ppl']:.4g}", flush=True)
    columns = {
        "format": "format",
        "method": "method",
        "steps": "steps",
        "bits_per_weight": "bits",
        "ppl": "perplexity",
        "kl": "KL",
        "top1": "top-1",
        "layer_error": "layer error",
        "minutes": "minutes",
        "peak_bytes": "peak bytes",
    }
    print(format_table(report.rows, columns))
    print(report.format_checks())
    if arguments.plots:
        pareto(report.rows, teacher["teacher_ppl"], arguments.plots)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
