"""The qualitative claims, each with the value measured, its target and a plain word why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.report import Check
from benchmarks.toy.lineup import MONOTONE

__all__ = ["claims"]

Rows = list[dict[str, Any]]
INNER_C = (2, 3, 4, 5)  # for c = 1 and c = d every method ends at the optimum
RULES = ("greedy", "uniform", "proportional", "gain")


def claims(rows: Rows, greedy_improvable: float) -> list[Check]:
    """Return all checks."""
    paper = [r for r in rows if r["experiment"] == "paper"]
    return [
        *_guarantees(rows, paper),
        *_order(paper),
        *_stalling(paper, rows, greedy_improvable),
        *_speed(rows),
        *_exploration(paper, rows),
    ]


def _guarantees(rows: Rows, paper: Rows) -> list[Check]:
    shares = [r["monotone_share"] for r in rows if r.get("method") in MONOTONE and "runs" in r]
    edges = [
        abs(r["final_gap_mean"]) for r in paper if r["c"] in (1, 6) and r["method"] in MONOTONE
    ]
    certificates = [r["certificate_gap_max"] for r in rows if "certificate_gap_max" in r]
    single = {r["condition"]: r["certified_share"] for r in rows if "certified_share" in r}
    open_at = [f"{condition:g}" for condition, share in single.items() if share < 1]
    ste = [r["monotone_share"] for r in paper if r["method"] == "straight-through" and r["c"] > 1]
    return [
        Check.at_least("PV methods: share of runs in which no half step hurts", min(shares), 1),
        Check.at_most(
            "c = 1 and c = d, distinct start: gap to the optimum of every PV method",
            max(edges),
            1e-9,
        ),
        Check.at_most(
            "d = 24: certificate gap of every exact V step, relative to the scale",
            max(certificates),
            1e-9,
            ""
            if max(certificates) <= 1e-9
            else "Branch and bound ran out of nodes on some steps; those are upper bounds only.",
        ),
        Check.at_least(
            "d = 24, c = 4: V steps certified within 10000 nodes, worst condition",
            min(single.values()),
            1,
            f"Not all at condition {', '.join(open_at)}: along flat directions the box relaxation "
            "bounds little; such a step returns its best codes and both bounds."
            if open_at
            else "",
        ),
        Check.at_most("straight-through: share of monotone runs, c = 2..6", max(ste), 0.05),
    ]


def _gap(paper: Rows, method: str, key: str = "final_gap_mean") -> Callable[[int], float]:
    found = {r["c"]: r[key] for r in paper if r["method"] == method}
    return lambda c: found[c]


def _order(paper: Rows) -> list[Check]:
    exact, linearized = _gap(paper, "exact PV"), _gap(paper, "linearized PV")
    checks = []
    for rule in RULES:
        subspace = _gap(paper, f"subspace PV, {rule}")
        below = max(exact(c) - subspace(c) for c in INNER_C)
        checks.append(Check.at_most(f"exact PV <= subspace {rule} in mean gap, every c", below, 0))
        above = {c: subspace(c) - linearized(c) for c in INNER_C}
        failing = [c for c in INNER_C if above[c] > 0]
        note = (
            f"Fails at c = {failing}: one greedy coordinate, the one of largest gradient, often "
            "cannot reach another value, and being deterministic the rule picks it again for ever."
        )
        checks.append(
            Check.at_most(
                f"subspace {rule} <= linearized PV in mean gap, every c",
                max(above.values()),
                0,
                note if failing else "",
            )
        )
    gain = _gap(paper, "subspace PV, gain, T=8")
    share = {c: (linearized(c) - gain(c)) / (linearized(c) - exact(c)) for c in INNER_C}
    worst = min(share.values())
    checks.append(
        Check.at_least(
            "gain, T=8: share of the way from linearized to exact PV that it covers, worst c",
            worst,
            0.8,
            ""
            if worst >= 0.8
            else "By c: "
            + ", ".join(f"{c}: {share[c]:.2f}" for c in INNER_C)
            + ". Its limit points "
            "are those no single code improves; exact PV changes several codes at once.",
        )
    )
    metric = _gap(paper, "metric PV, diagonal")
    excess = max(metric(c) - linearized(c) for c in INNER_C)
    checks.append(
        Check.at_most(
            "diagonal metric <= linearized PV in mean gap, every c",
            excess,
            0,
            "" if excess <= 0 else "A diagonal above the Hessian exceeds L at some coordinates.",
        )
    )
    return checks


def _stalling(paper: Rows, rows: Rows, greedy_improvable: float) -> list[Check]:
    still = _gap(paper, "linearized PV", "codes_never_moved_share")
    exact = _gap(paper, "exact PV", "codes_never_moved_share")
    traps = {(r["method"], r["c"]): r["trapped_share"] for r in rows if r["experiment"] == "traps"}
    ratio = min(traps["linearized PV", c] / traps["exact PV", c] for c in INNER_C)
    return [
        Check.at_least(
            "naive linearized PV stalls: share of runs in which no code ever moves, least c",
            min(still(c) for c in INNER_C),
            0.5,
            f"Exact PV: {max(exact(c) for c in INNER_C):.2f} at most.",
        ),
        Check.at_least(
            "partitions that trap linearized PV for each that traps exact PV, least c", ratio, 1.5
        ),
        Check.at_least(
            "greedy stalls: share of its limit points (c = 3) that another code would improve",
            greedy_improvable,
            0.25,
        ),
    ]


def _speed(rows: Rows) -> list[Check]:
    found = {
        (r["method"].partition(",")[0], r["c"], r["inner"]): r["gap_after_2_iterations"]
        for r in rows
        if r["experiment"] == "inner iterations"
    }
    checks = []
    for family in ("linearized", "uniform subspace"):
        ratio = max(found[family, c, 8] / found[family, c, 1] for c in (2, 3, 4))
        note = (
            "With exact P steps a linearized run is over after one or two iterations: further "
            "roundings move no code, so there is nothing for T to speed up."
        )
        checks.append(
            Check.at_most(
                f"{family}, larger T is faster: gap after 2 iterations, T=8 over T=1, worst c",
                ratio,
                0.8,
                note if ratio > 0.8 else "",
            )
        )
    paper = [r for r in rows if r["experiment"] == "paper"]
    gaps = {rule: _gap(paper, f"subspace PV, {rule}", "early_gap_mean") for rule in RULES}
    for rival in ("uniform", "proportional"):
        excess = max(gaps["greedy"](c) - gaps[rival](c) for c in INNER_C)
        checks.append(
            Check.at_most(
                f"greedy is the fastest rule: gap after 5 iterations, greedy less {rival}, worst c",
                excess,
                0,
                "" if excess <= 0 else "Greedy is ahead in the first step and then stalls.",
            )
        )
    return checks


def _exploration(paper: Rows, rows: Rows) -> list[Check]:
    exact = _gap(paper, "exact PV")
    checks = []
    for name, key in (
        ("gain and kicks", "final_gap_mean"),
        ("straight-through", "best_gap_mean"),
        ("stochastic rounding, linear", "best_gap_mean"),
    ):
        found = _gap(paper, name, key)
        what = "final" if key == "final_gap_mean" else "best iterate's"
        checks.append(
            Check.at_most(
                f"{name}: {what} mean gap over that of exact PV, worst c",
                max(found(c) / exact(c) for c in INNER_C),
                1,
            )
        )
    wide = {
        r["method"]: r["final_gap_mean"] if r["monotone_share"] == 1 else r["best_gap_mean"]
        for r in rows
        if r["experiment"] == "exploration" and r["d"] == 24
    }
    checks.append(
        Check.at_most(
            "d = 24, c = 4: gap of gain with kicks of 3 over that of exact PV",
            wide["gain and kicks of 3"] / wide["exact PV"],
            1,
        )
    )
    others = min(v for k, v in wide.items() if not k.startswith("gain and"))
    checks.append(
        Check.at_most(
            "d = 24, c = 4: the same over the best of restarts, guarded STE and guarded rounding",
            wide["gain and kicks of 3"] / others,
            1,
        )
    )
    return checks
