"""The experiments: each returns rows for the table and outcomes for the pictures."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.toy.lineup import Outcome, lineup, measure, row
from benchmarks.toy.settings import Sizes, logistic_setting, paper_setting, scale_of, wide_setting
from pvopt.convex import (
    ExactP,
    Exploration,
    Gain,
    QuadraticModel,
    Uniform,
    branch_and_bound,
    random_quadratic,
    random_start,
    recipes,
)

__all__ = [
    "certificates",
    "conditioning",
    "exploration",
    "inner_iterations",
    "logistic",
    "paper",
    "wide",
]

Rows = list[dict[str, Any]]
SEED = 1


def paper(sizes: Sizes) -> tuple[Rows, dict[tuple[int, str], list[Outcome]]]:
    """Run every method in the paper's setting: d = 6, c = 1..6."""
    rows: Rows = []
    outcomes: dict[tuple[int, str], list[Outcome]] = {}
    for c in range(1, 7):
        for number in range(sizes.problems):
            problem, start = paper_setting(number, c, sizes.starts)
            scale = scale_of(problem, c, enumerate_optimum=True)
            for name, method in lineup(problem).items():
                found = measure(
                    name, method, problem, start, scale, iterations=sizes.iterations, seed=SEED
                )
                outcomes.setdefault((c, name), []).append(found)
        rows += [
            row(found, experiment="paper", d=6, c=c) for (k, _), found in outcomes.items() if k == c
        ]
    return rows, outcomes


def inner_iterations(sizes: Sizes) -> tuple[Rows, dict[tuple[str, int, int], list[Outcome]]]:
    """Vary T, the linearized V steps per P step, with all coordinates and with a random one."""
    rows: Rows = []
    outcomes: dict[tuple[str, int, int], list[Outcome]] = {}
    for c in (2, 3, 4):
        for inner in range(1, 9):
            methods = {
                "linearized": recipes.linearized_pv(inner),
                "uniform subspace": recipes.subspace_pv(Uniform(1), inner=inner),
            }
            for family, method in methods.items():
                found = []
                for number in range(sizes.problems):
                    problem, start = paper_setting(number, c, sizes.starts)
                    scale = scale_of(problem, c, enumerate_optimum=True)
                    name = f"{family}, T={inner}"
                    found.append(
                        measure(name, method, problem, start, scale, iterations=40, seed=SEED)
                    )
                outcomes[family, c, inner] = found
                after_two = float(np.mean([o.gaps()[min(4, len(o.gaps()) - 1)] for o in found]))
                extra = {"experiment": "inner iterations", "d": 6, "c": c, "inner": inner}
                rows.append({**row(found, **extra), "gap_after_2_iterations": after_two})
    return rows, outcomes


def wide(sizes: Sizes) -> tuple[Rows, dict[tuple[int, str], list[Outcome]]]:
    """Run every method at d = 24, where exact V steps need branch and bound."""
    rows: Rows = []
    outcomes: dict[tuple[int, str], list[Outcome]] = {}
    for c in (2, 4, 8):
        problem, start = wide_setting(0, c, sizes.wide_starts)
        scale = scale_of(problem, c, enumerate_optimum=False)
        for name, method in lineup(problem).items():
            found = measure(
                name, method, problem, start, scale, iterations=2 * sizes.iterations, seed=SEED
            )
            outcomes[c, name] = [found]
            rows.append(_certified(row([found], experiment="wide", d=24, c=c), found))
    return rows, outcomes


def conditioning(sizes: Sizes) -> Rows:
    """Run every method at d = 10, c = 4 for condition numbers 10 to 1e6, against the optimum."""
    rows: Rows = []
    for condition in sizes.conditions:
        problem = random_quadratic(10, condition, np.random.default_rng([1, 10]))
        start = random_start(10, 4, np.random.default_rng([2, 10]), runs=sizes.logistic_starts)
        scale = scale_of(problem, 4, enumerate_optimum=True)
        for name, method in lineup(problem).items():
            found = measure(
                name, method, problem, start, scale, iterations=sizes.iterations, seed=SEED
            )
            extra = {"experiment": "conditioning", "d": 10, "c": 4, "condition": condition}
            rows.append(_certified(row([found], **extra), found))
    return rows


def certificates(sizes: Sizes) -> Rows:
    """Run branch and bound on single V steps at d = 24, c = 4, at most 10000 nodes each."""
    rows: Rows = []
    for condition in sizes.conditions:
        problem, start = wide_setting(1, 4, sizes.wide_starts // 2 + 1, condition)
        fitted = ExactP().step(problem, start)
        weights, slope = fitted.weights, problem.gradient(fitted.weights)
        began = time.perf_counter()
        found = [
            branch_and_bound(
                QuadraticModel(problem.A, slope[run], weights[run], fitted.values[run]),
                fitted.codes[run],
                max_nodes=10_000,
            )
            for run in range(len(weights))
        ]
        rows.append(
            {
                "experiment": "certificates",
                "d": 24,
                "c": 4,
                "condition": condition,
                "steps": len(found),
                "certified_share": float(
                    np.mean([f.gap <= 1e-9 * abs(f.upper_bound) for f in found])
                ),
                "nodes_median": float(np.median([f.nodes for f in found])),
                "step_s": (time.perf_counter() - began) / len(found),
            }
        )
    return rows


def logistic(sizes: Sizes) -> Rows:
    """Run every method on a logistic regression with 8 weights, against the global optimum."""
    rows: Rows = []
    for c in (2, 3):
        problem, start = logistic_setting(0, c, sizes.logistic_starts)
        scale = scale_of(problem, c, enumerate_optimum=True)
        for name, method in lineup(problem).items():
            found = measure(
                name, method, problem, start, scale, iterations=sizes.iterations // 2, seed=SEED
            )
            rows.append(row([found], experiment="logistic", d=8, c=c))
    return rows


def exploration(sizes: Sizes) -> tuple[Rows, dict[tuple[int, str], Outcome]]:
    """Compare ways to explore, with a guard on the best, at about equal numbers of iterations."""
    rows: Rows = []
    outcomes: dict[tuple[int, str], Outcome] = {}
    gain = recipes.subspace_pv(Gain(1), inner=8)
    for d, c in ((6, 3), (24, 4)):
        setting = paper_setting if d == 6 else wide_setting
        problem, start = setting(0, c, sizes.starts if d == 6 else sizes.wide_starts)
        scale = scale_of(problem, c, enumerate_optimum=d == 6)
        budget = 120 if sizes.quick else 400
        per_round = 5 if d == 6 else 6  # iterations a round takes: measured, and shown in the rows
        methods = {
            "exact PV": (recipes.exact_pv(), budget),
            "gain, restarted": (Exploration(method=gain, rounds=budget // 7, changes=d), 50),
            "gain and kicks of 1": (Exploration(method=gain, rounds=budget // 4, changes=1), 50),
            "gain and kicks of 3": (
                Exploration(method=gain, rounds=budget // per_round, changes=3),
                50,
            ),
            "straight-through, best so far": (recipes.ste(), budget),
            "penalised straight-through, best so far": (recipes.penalised_ste(0.1), budget),
            "stochastic rounding, best so far": (recipes.stochastic_rounding("linear"), budget),
        }
        for name, (method, iterations) in methods.items():
            found = measure(name, method, problem, start, scale, iterations=iterations, seed=SEED)
            outcomes[d, name] = found
            extra = {"experiment": "exploration", "d": d, "c": c}
            total = {"iterations_total": len(found.trajectory.smoothness)}
            rows.append({**row([found], **extra), **total})
    return rows, outcomes


def _certified(result: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Add the largest certificate gap of a run's exact V steps, relative to its scale."""
    gaps = outcome.trajectory.certificate_gap
    if not np.isnan(gaps).all():
        span = outcome.scale.top - outcome.scale.bottom
        result["certificate_gap_max"] = float(np.nanmax(gaps) / span)
    return result
