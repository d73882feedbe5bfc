"""Pictures that explain: straight-through against PV, traps, stalls, exploration, conditioning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from benchmarks.toy.lineup import Outcome
from benchmarks.toy.plots import COLOURS, STYLE, save
from benchmarks.toy.settings import wide_setting
from benchmarks.toy.traps import GreedyStall
from pvopt.convex import (
    Gain,
    Greedy,
    KeepValues,
    Point,
    Proportional,
    Quadratic,
    Uniform,
    recipes,
)

__all__ = ["conditions", "exploring", "smoothness", "stalls", "straight_through"]

Rows = list[dict[str, Any]]


def straight_through(folder: Path) -> Path:
    """STE against PV on two weights that may be -1, 0, 1 or 2: the path, and the objective."""
    best = np.array([0.3, 0.6])
    matrix = np.array([[2.0, 1.3], [1.3, 2.0]])
    problem = Quadratic(matrix, matrix @ best)
    start = Point(np.array([3, 0]), np.array([-1.0, 0.0, 1.0, 2.0]))
    kept = KeepValues()  # a fixed grid: only the codes move, which a plane can show
    ste = recipes.ste(p_step=kept).run(problem, start, iterations=40)
    exact = recipes.exact_pv(p_step=kept).run(problem, start)
    single = recipes.subspace_pv(Gain(), p_step=kept).run(problem, start)
    floor = float(problem.value(best))
    lines = {
        "PV, exact V step": (exact, "C0", "s"),
        "PV, one code at a time (gain)": (single, "C2", "^"),
    }
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 4.3), gridspec_kw={"width_ratios": [1, 1.25]}
        )
        x, y = np.meshgrid(np.linspace(-1.6, 2.6, 200), np.linspace(-1.6, 2.6, 200))
        height = problem.value(np.stack([x, y], -1)) - floor
        left.contour(x, y, height, levels=np.geomspace(0.02, 12, 10), colors="0.85", linewidths=0.8)
        grid = np.stack(np.meshgrid(start.values, start.values), -1).reshape(-1, 2)
        left.plot(*grid.T, "o", color="0.6", ms=4, label="weights allowed")
        left.plot(*best, "k*", ms=9, label="minimum, not allowed")
        visits = ste.weights[::2]
        left.plot(*_jittered(visits).T, "-", color="C3", lw=0.7, alpha=0.7)
        left.plot(*visits.T, "o", color="C3", ms=13, mfc="none", label="straight-through is here")
        steps = np.arange(41)
        above = ste.objective[::2] - floor
        right.plot(steps, above, "-o", color="C3", ms=3, lw=1, label="straight-through")
        for name, (run, colour, marker) in lines.items():
            left.plot(
                *run.weights[::2].T, "-", marker=marker, color=colour, ms=6, lw=1.6, label=name
            )
            own = run.objective[::2] - floor
            own = np.concatenate([own, np.full(41 - len(own), own[-1])])
            right.plot(steps, own, "-", marker=marker, color=colour, ms=3, lw=1.6, label=name)
        left.set(xlabel="weight 1", ylabel="weight 2", xlim=(-1.6, 2.6), ylim=(-1.6, 2.6))
        left.grid(visible=False)
        left.set_title("two weights, each may be -1, 0, 1 or 2", fontsize=9)
        right.set(xlabel="iteration", ylabel="loss above the unrounded minimum", yscale="log")
        right.set_title("straight-through finds the best point and leaves it again", fontsize=9)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8, ncols=5, loc="lower center")
        figure.suptitle(
            "Straight-through pushes a hidden weight along a gradient that never vanishes: its "
            "codes never settle.\nPV moves only where the loss falls, and stops: at the best "
            "point, or at one that no single code improves"
        )
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        return save(figure, folder, "straight_through_against_pv")


def _jittered(path: np.ndarray) -> np.ndarray:
    """Shift each visit a little, so that repeated jumps are seen as several lines."""
    return path + np.random.default_rng(0).uniform(-0.05, 0.05, path.shape)


def stalls(traps: Rows, greedy: GreedyStall, folder: Path) -> Path:
    """Why limit points differ: the share of partitions that trap, and one greedy stall."""
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
        names = ["linearized PV", "subspace PV, greedy", "subspace PV, gain", "exact PV"]
        for i, name in enumerate(names):
            rows = [r for r in traps if r["method"] == name]
            place = np.array([r["c"] for r in rows]) + 0.2 * (i - 1.5)
            left.bar(
                place, [r["trapped_share"] for r in rows], 0.2, color=COLOURS[name], label=name
            )
            middle.bar(place, [r["trap_gap_mean"] for r in rows], 0.2, color=COLOURS[name])
        left.set_title("partitions a method cannot leave", fontsize=9)
        left.set_ylim(0, 1.25)
        left.legend(fontsize=7, ncols=2, loc="upper left")
        left.set_ylabel("share of all partitions")
        middle.set_title("how bad those are", fontsize=9)
        middle.set_ylabel("mean gap of the traps")
        for axis in (left, middle):
            axis.set_xlabel("c")
            axis.set_xticks([2, 3, 4, 5])
        order = np.argsort(-greedy.gradient, kind="stable")
        place = np.arange(len(order))
        gain = np.maximum(greedy.gain[order], 0.0)
        right.bar(place, gain, 0.6, color=np.where(gain == gain.max(), "C2", "0.7").tolist())
        right.annotate(
            "the rule chooses this one, for ever:\nits step reaches no other value",
            (int(np.flatnonzero(order == greedy.chosen)[0]), 0),
            (-0.4, 1.1 * gain.max()),
            fontsize=8,
            color="C1",
            arrowprops={"arrowstyle": "->", "color": "C1", "relpos": (0.07, 0)},
        )
        right.set_ylim(0, 1.3 * gain.max())
        right.set_xticks(place, [f"{g:.3g}" for g in greedy.gradient[order]])
        right.set_xlabel("coordinates by gradient |g|, largest first")
        right.set_ylabel("predicted decrease")
        right.set_title("a greedy stall: other coordinates would lower the loss", fontsize=9)
        figure.tight_layout()
        return save(figure, folder, "traps_and_stalls")


def smoothness(folder: Path) -> Path:
    """L_S along runs at d = 24 for the three rules of the paper, 1 and 4 coordinates."""
    problem, start = wide_setting(0, 4, 10)
    rules = {"greedy": Greedy, "proportional": Proportional, "uniform": Uniform}
    colours = {"greedy": "C1", "proportional": "C5", "uniform": "C4"}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.3), sharey=True)
        for axis, size in zip(axes, (1, 4), strict=True):
            for name, rule in rules.items():
                run = recipes.subspace_pv(rule(size)).run(
                    problem, start, iterations=40, generator=np.random.default_rng(1)
                )
                found = np.full((40, run.smoothness.shape[1]), np.nan)
                found[: len(run.smoothness)] = run.smoothness
                found[len(run.smoothness) :] = run.smoothness[-1]  # a fixed point repeats its S
                steps = np.arange(1, 41)
                axis.plot(steps, found.mean(1), color=colours[name], lw=1.5, label=name)
                low, high = np.quantile(found, [0.1, 0.9], axis=1)
                axis.fill_between(steps, low, high, color=colours[name], alpha=0.15, lw=0)
            axis.axhline(problem.smoothness, color="k", ls="--", lw=1)
            axis.text(40, problem.smoothness * 0.97, "L, all coordinates", ha="right", va="top")
            axis.set_title(f"{size} of 24 coordinates", fontsize=9)
            axis.set_xlabel("V step")
        axes[0].set_ylabel("smoothness constant $L_S$ used")
        axes[0].set_ylim(0, None)
        axes[0].legend(loc="center right")
        figure.suptitle("Steps of a subspace are 1/$L_S$ long: several times longer than 1/L")
        figure.tight_layout()
        return save(figure, folder, "subspace_smoothness")


def exploring(outcomes: dict[tuple[int, str], Outcome], folder: Path) -> Path:
    """Exploration with a guard: the best gap so far against iterations."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.8))
        for axis, d in zip(axes, (6, 24), strict=True):
            floor = 1e-4 if d == 6 else 0.0
            longest = max(len(o.trajectory.smoothness) for (k, _), o in outcomes.items() if k == d)
            for (dimension, name), outcome in outcomes.items():
                if dimension != d:
                    continue
                gaps = outcome.gaps(best=True)[1::2].mean(1)
                gaps = np.concatenate([gaps, np.full(longest - len(gaps), gaps[-1])])
                style = {"color": "k", "ls": "--"} if name == "exact PV" else {}
                axis.plot(
                    np.arange(1, longest + 1), np.maximum(gaps, floor), lw=1.4, label=name, **style
                )
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel("iteration")
        axes[0].set_title("d = 6, c = 3: gap to the global optimum", fontsize=9)
        axes[1].set_title("d = 24, c = 4: gap to the unconstrained minimum", fontsize=9)
        axes[0].set_ylabel("mean gap of the best so far")
        axes[1].legend(fontsize=7)
        figure.suptitle("Leaving the limit points of PV, with monotone reports")
        figure.tight_layout()
        return save(figure, folder, "exploration")


def conditions(rows: Rows, folder: Path) -> Path:
    """Final gap against the condition number."""
    names = [
        "linearized PV",
        "metric PV, diagonal",
        "subspace PV, greedy",
        "subspace PV, uniform",
        "subspace PV, gain",
        "exact PV",
        "straight-through",
        "gain and kicks",
    ]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 3.8))
        for name in names:
            found = [r for r in rows if r["method"] == name]
            key = "best_gap_mean" if name == "straight-through" else "final_gap_mean"
            label = f"{name} (best iterate)" if name == "straight-through" else name
            style = {"color": COLOURS.get(name, "C6"), "ms": 4, "lw": 1.3, "marker": "o"}
            condition = [r["condition"] for r in found]
            left.plot(condition, [max(r[key], 1e-5) for r in found], **style)
            still = [r["codes_never_moved_share"] for r in found]
            right.plot(condition, still, **style, label=label)
        for axis in (left, right):
            axis.set_xscale("log")
            axis.set_xlabel("condition number")
        left.set_yscale("log")
        left.set_title("mean gap to the global optimum (below 1e-5 shown there)", fontsize=9)
        right.set_title("share of runs in which no code ever moved", fontsize=9)
        right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.suptitle("Condition number, d = 10, c = 4")
        figure.tight_layout()
        return save(figure, folder, "conditioning")
