"""Does a tuning run take what it was planned to take?

``python -m benchmarks.plan [--quick] [--json FILE] [--runs 0,4]``
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import in_own_process
from benchmarks.report import Check, Report, format_table, parser

from .experiment import RUNS, Run, measure, predict, write_model

_COLUMNS = {
    "model": "model",
    "run": "run",
    "planned_gb": "planned GB",
    "measured_gb": "measured GB",
    "memory_ratio": "planned / measured",
    "planned_s": "planned s per step",
    "measured_s": "measured s",
}


def _row(run: Run, folder: Path, steps: int) -> dict[str, Any]:
    """Plan a run, then make it."""
    source = str(write_model(folder / "30M")) if run.model == "30M" else run.model
    row: dict[str, Any] = {"model": run.model, "run": run.name}
    row |= in_own_process(predict, source, run)
    row |= measure(source, run, folder / "run", steps)
    row |= {f"{name}_gb": row[f"{name}_bytes"] / 1e9 for name in ("planned", "measured")}
    row["memory_ratio"] = row["planned_bytes"] / row["measured_bytes"]
    return row


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run everything, print the table and checks, write what was asked for."""
    options = parser("plan", __doc__ or "")
    options.add_argument("--runs", help="comma-separated numbers of rows; default: all")
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--work", metavar="DIR", type=Path, help="keep models and runs here")
    chosen = options.parse_args(arguments)
    numbers = [0] if chosen.quick else list(range(1, len(RUNS)))
    if chosen.runs:
        rows = {str(number): number for number in range(len(RUNS))}
        unknown = [number for number in chosen.runs.split(",") if number not in rows]
        if unknown:
            options.error(f"unknown run {unknown[0]!r}; choose from 0 to {len(RUNS) - 1}")
        numbers = [rows[number] for number in chosen.runs.split(",")]
    settings = {"quick": chosen.quick, "steps": chosen.steps}
    report = Report("plan", settings, packages=("torch", "transformers", "numpy", "numba"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.work or Path(temporary)
        for number in numbers:
            row = _row(RUNS[number], folder, chosen.steps)
            report.rows.append(row)
            error = abs(row["memory_ratio"] - 1)
            name = f"{row['model']}, {row['run']}: error of the planned peak"
            report.checks.append(Check.at_most(name, error, 0.1))
            print(format_table([row], _COLUMNS).splitlines()[-1], flush=True)
            if chosen.json:  # after every row: a long run cut short still has its rows
                report.write_json(chosen.json)
    print(format_table(report.rows, _COLUMNS))
    print(report.format_checks())
    return report


if __name__ == "__main__":
    main()
