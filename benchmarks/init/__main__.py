"""Command line: ``python -m benchmarks.init [--quick] [--json FILE] [--plots DIR]``."""

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
    by_name = {row["format"]: row for row in rows}
    checks = []
    if "gptq-4" in by_name:
        ratio = by_name["gptq-4"]["ppl"] / teacher_ppl
        checks.append(Check.at_most("GPTQ, 4 bits: perplexity over the teacher's", ratio, 1.1))
    if "aqlm-2x8g8" in by_name:
        gain = 2.8e5 / by_name["aqlm-2x8g8"]["ppl"]
        checks.append(Check.at_least("AQLM 2x8g8: times better than 2.8e5", gain, 50))
        seconds = by_name["aqlm-2x8g8"]["quantize_s"]
        checks.append(Check.at_most("AQLM 2x8g8 of the whole model, seconds", seconds, 1800))
    if {"e8p-2", "vq-2"} <= by_name.keys():
        ratio = by_name["e8p-2"]["ppl"] / by_name["vq-2"]["ppl"]
        checks.append(Check.at_most("E8P over VQ at 2 bits, perplexities", ratio, 1))
    return checks


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 whether or not its checks hold."""
    options = parser("init", __doc__ or "")
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
    report = Report("init", asdict(settings), packages=("torch", "transformers", "numpy"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        key = settings.key()
        teacher_key = settings.teacher_key()
        teacher = _stage(folder / "teacher.json", teacher_key, measure_teacher, settings)
        report.settings["teacher"] = teacher
        print(f"teacher {teacher['teacher_ppl']:.2f}", flush=True)
        for name in names:
            row = _stage(folder / f"{name}.json", key, measure, settings, name, folder)
            if settings.tuned_steps and ROWS[name].two_bits:
                if not (folder / "teacher.pt").exists():
                    in_own_process(prepare_tuning, settings, folder)
                row |= _stage(
                    folder / f"{name}-tuned.json",
                    f"{key} {settings.tuned_steps}",
                    tune,
                    settings,
                    name,
                    folder,
                )
            report.rows.append(row)
            report.checks = _checks(settings, teacher["teacher_ppl"], report.rows)
            if arguments.json:  # after every row: a long run cut short still has its rows
                report.write_json(arguments.json)
            print(f"{name}: {row['ppl']:.4g}", flush=True)
    columns = {
        "format": "format",
        "start": "start",
        "bits_per_weight": "bits",
        "ppl": "perplexity",
        "layer_error": "layer error",
        "quantize_s": "seconds",
        "peak_bytes": "peak bytes",
    }
    if settings.tuned_steps:
        columns["tuned_ppl"] = f"after {settings.tuned_steps} steps"
    print(format_table(report.rows, columns))
    print(report.format_checks())
    if arguments.plots:
        pareto(report.rows, teacher["teacher_ppl"], arguments.plots)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
