"""How fast are the operations on this CPU, against others and against the floor?

``python -m benchmarks.kernels [--quick] [--json FILE] [--plots DIR] [--clock wall|cpu]
[--threads N]``; with ``--roofline`` it counts what GPUs need in place of timing
(:mod:`benchmarks.kernels.roofline`), and ``python -m benchmarks.kernels.gpu`` times on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from benchmarks.bars import bars
from benchmarks.kernels.cases import CASES, SEED, Case
from benchmarks.kernels.machine import Machine
from benchmarks.report import Check, Report, format_table, parser
from benchmarks.timing import CLOCKS, in_turns

OURS = "pvopt_kernels"
COLUMNS = {
    "case": "operation",
    "implementation": "implementation",
    "median_ms": "median ms",
    "quartiles_ms": "quartiles ms",
    "repeats": "runs",
    "speedup": "ours is faster by",
    "floor_ms": "floor ms",
    "error": "error",
}


# OpenBLAS's threads spin longest: 50 ms after their work two turns of ours still took 30 ms each.
_PAUSE_S = 0.2
_ONLY = "some of the cases: " + ", ".join(CASES)


def rows_of(case: Case, *, repeats: int, clock: str) -> list[dict[str, object]]:
    """Compare the outputs, then time the competitors in turns.

    Raises:
        AssertionError: if our result is wrong; a competitor's error is reported.
    """
    threads = torch.get_num_threads()
    errors = {name: case.error(run()) for name, run in case.competitors.items()}
    torch.set_num_threads(threads)  # the first call of aqlm changes it
    assert errors[OURS] <= case.tolerance, f"{case.name}: wrong by {errors[OURS]}"
    times = in_turns(case.competitors, repeats=repeats, clock=clock, pause_s=_PAUSE_S)
    return [
        {
            "case": case.name,
            "implementation": name,
            **asdict(timing),
            "median_ms": 1e3 * timing.median_s,
            "quartiles_ms": f"{1e3 * timing.low_s:.3g} .. {1e3 * timing.high_s:.3g}",
            "speedup": timing.median_s / times[OURS].median_s,
            "floor_s": case.floor_s,
            "floor_ms": 1e3 * case.floor_s,
            "floor": case.floor,
            "error": errors[name],
            "right": errors[name] <= case.tolerance,
        }
        for name, timing in times.items()
    ]


def checks_of(case: Case, rows: list[dict[str, object]]) -> list[Check]:
    """Return the targets of a case whose competitor ran."""
    found = {row["implementation"]: row for row in rows}
    checks = []
    for name, factor in case.targets.items():
        if name in found:
            note = "" if found[name]["right"] else "its result was wrong in this run"
            claim = f"{case.name}: time of {name} over ours"
            checks.append(Check.at_least(claim, float(str(found[name]["speedup"])), factor, note))
    return checks


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the cases, print the table and the checks, write what was asked for."""
    options = parser("kernels", __doc__ or "")
    options.add_argument("--roofline", action="store_true", help="floors on GPUs, nothing is timed")
    options.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--only", nargs="+", choices=list(CASES), metavar="CASE", help=_ONLY)
    chosen = options.parse_args(arguments)
    if chosen.roofline:
        from benchmarks.kernels import roofline  # needs Triton

        return roofline.report_of(quick=chosen.quick, json=chosen.json, plots=chosen.plots)
    torch.set_num_threads(chosen.threads)
    machine = Machine.measure(quick=chosen.quick, clock=chosen.clock)
    settings = {
        "quick": chosen.quick,
        "clock": chosen.clock,
        "threads": chosen.threads,
        "seed": SEED,
        **asdict(machine),
    }
    report = Report("kernels", settings, packages=("torch", "numpy", "scipy", "numba", "aqlm"))
    for name in chosen.only or CASES:
        case = CASES[name](machine, chosen.quick)
        rows = rows_of(case, repeats=chosen.repeats, clock=chosen.clock)
        report.rows += rows
        report.checks += checks_of(case, rows)
    print(format_table(report.rows, COLUMNS))
    print()
    print(report.format_checks())
    if chosen.json:
        report.write_json(chosen.json)
    if chosen.plots:
        others = [
            {"name": f"{row['case']}: {row['implementation']}", "speedup": row["speedup"]}
            for row in report.rows
            if row["implementation"] != OURS
        ]
        title = "Times of other implementations over ours"
        print(bars(others, "name", "speedup", chosen.plots / "kernels.png", title=title, unit="x"))
    return report


if __name__ == "__main__":
    main()
