"""Toy convergence of PV and its rivals on problems small enough to know the optimum.

``python -m benchmarks.toy [--quick] [--json FILE] [--plots DIR]``
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.report import Report, format_table, parser
from benchmarks.toy import experiments, traps
from benchmarks.toy.claims import claims
from benchmarks.toy.settings import Sizes

GAP_COLUMNS = {
    "method": "method",
    "c": "c",
    "condition": "condition",
    "final_gap_mean": "final gap",
    "best_gap_mean": "best gap",
    "reach_share": "reach optimum",
    "iterations_median": "iterations",
    "p_decrease_total": "P gains",
    "v_decrease_total": "V gains",
    "monotone_share": "monotone",
    "codes_never_moved_share": "codes never moved",
}
TABLES = {
    "paper": ("d = 6, random quadratics of condition 100; gap 0 = global optimum", GAP_COLUMNS),
    "inner iterations": (
        "d = 6, T linearized V steps per P step",
        {"method": "method", "c": "c", "final_gap_mean": "final gap",
         "gap_after_2_iterations": "gap after 2", "iterations_median": "iterations"},
    ),
    "traps": (
        "d = 6, partitions that a method cannot leave",
        {"method": "method", "c": "c", "trapped_share": "share", "trap_gap_mean": "their gap"},
    ),
    "wide": ("d = 24, exact V steps by branch and bound; gap 0 = unconstrained", GAP_COLUMNS),
    "certificates": (
        "d = 24, c = 4, single exact V steps by branch and bound, at most 10000 nodes",
        {"condition": "condition", "steps": "steps", "certified_share": "certified",
         "nodes_median": "nodes", "step_s": "seconds per step"},
    ),
    "conditioning": ("d = 10, c = 4; gap 0 = global optimum", GAP_COLUMNS),
    "logistic": ("logistic regression, d = 8; gap 0 = global optimum", GAP_COLUMNS),
    "exploration": (
        "exploration with a guard on the best so far",
        {"d": "d", "c": "c", "method": "method", "iterations_total": "iterations",
         "best_gap_mean": "best gap", "reach_share": "reach optimum"},
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the experiments, print tables and checks, write what was asked for."""
    options = parser("toy", __doc__ or "").parse_args(arguments)
    began = time.perf_counter()
    sizes = Sizes.of(options.quick)
    report = Report("toy", {**asdict(sizes), "seed": experiments.SEED})
    paper_rows, paper = experiments.paper(sizes)
    inner_rows, inner = experiments.inner_iterations(sizes)
    trap_rows, greedy = traps.trap_rows(sizes), traps.greedy_stall(sizes)
    wide_rows, _ = experiments.wide(sizes)
    condition_rows = experiments.conditioning(sizes)
    exploration_rows, explored = experiments.exploration(sizes)
    report.rows = [
        *paper_rows,
        *inner_rows,
        *trap_rows,
        {"experiment": "greedy stalls", "d": 6, "c": 3, **greedy.row},
        *wide_rows,
        *experiments.certificates(sizes),
        *condition_rows,
        *experiments.logistic(sizes),
        *exploration_rows,
    ]
    report.checks = claims(report.rows, greedy.improvable_share)
    for experiment, (title, columns) in TABLES.items():
        found = [r for r in report.rows if r["experiment"] == experiment]
        used = {k: v for k, v in columns.items() if any(k in r for r in found)}
        print(f"\n{title}\n\n{format_table(found, used)}")
    print(f"\n{report.format_checks()}")
    if options.plots is not None:
        from benchmarks.toy import explain, plots  # matplotlib is needed for pictures only

        for path in (
            plots.convergence(paper, options.plots),
            plots.half_steps(paper, options.plots),
            plots.inner(inner, options.plots),
            plots.families(paper, options.plots),
            explain.smoothness(options.plots),
            explain.straight_through(options.plots),
            explain.stalls(trap_rows, greedy, options.plots),
            explain.exploring(explored, options.plots),
            explain.conditions(condition_rows, options.plots),
        ):
            print(path)
    report.settings["total_s"] = time.perf_counter() - began
    if options.json is not None:
        report.write_json(options.json)
    print(f"\n{report.settings['total_s']:.0f} s")
    return report


if __name__ == "__main__":
    main()
