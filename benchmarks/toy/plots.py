"""Pictures of the toy benchmark: the paper's, from the runs that the table summarises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.toy.lineup import Outcome

__all__ = ["STYLE", "convergence", "families", "half_steps", "inner", "padded", "save"]

STYLE: Any = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
mpl.use("Agg")  # files only, wherever it runs

Outcomes = dict[tuple[int, str], list[Outcome]]
COLOURS = {
    "exact PV": "C0",
    "linearized PV": "C3",
    "subspace PV, greedy": "C1",
    "subspace PV, uniform": "C4",
    "subspace PV, proportional": "C5",
    "subspace PV, gain": "C2",
    "straight-through": "C7",
    "gain and kicks": "k",
}


def save(figure: Any, folder: Path, name: str) -> Path:
    """Write a figure as PNG and close it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    return path


def padded(outcomes: list[Outcome], half_steps: int, *, best: bool = False) -> NDArray[np.float64]:
    """Return the gaps of all runs, ``(half_steps + 1, runs)``; a run that stopped stays put."""
    parts = []
    for outcome in outcomes:
        gaps = outcome.gaps(best=best)[: half_steps + 1]
        tail = np.repeat(gaps[-1:], half_steps + 1 - len(gaps), axis=0)
        parts.append(np.concatenate([gaps, tail]))
    return np.concatenate(parts, axis=1)


def _iterations(half_steps: int) -> NDArray[np.float64]:
    return np.arange(half_steps + 1) / 2


def convergence(outcomes: Outcomes, folder: Path) -> Path:
    """Exact PV: relative gap against iteration, every start, one panel per c."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(9.5, 5.2), sharex=True)
        for c, axis in zip(range(1, 7), axes.flat, strict=True):
            gaps = padded(outcomes[c, "exact PV"], 12)
            axis.plot(_iterations(12), gaps, color="C0", alpha=0.06, lw=0.8)
            axis.plot(_iterations(12), gaps.mean(1), color="k", lw=1.6, label="mean")
            axis.set_yscale("symlog", linthresh=1e-2)
            axis.set_ylim(-5e-4, None)
            share = np.mean(gaps[-1] < 1e-8)
            axis.set_title(f"c = {c}: {share:.0%} reach the optimum", fontsize=9)
        axes[0, 0].legend()
        for axis in axes[:, 0]:
            axis.set_ylabel("gap to global optimum")
        for axis in axes[1]:
            axis.set_xlabel("iteration")
        figure.suptitle("Exact PV, d = 6: gap 0 is the global optimum, 1 the best constant vector")
        figure.tight_layout()
        return save(figure, folder, "exact_pv_by_c")


def half_steps(outcomes: Outcomes, folder: Path) -> Path:
    """Exact PV: what the P and what the V half steps gain."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), sharey=True)
        for c, axis in zip((2, 3, 4, 5), axes, strict=True):
            gaps = padded(outcomes[c, "exact PV"], 8).mean(1)
            steps = np.arange(9)
            axis.plot(steps / 2, gaps, color="0.7", lw=1, zorder=1)
            for parity, colour, name in ((1, "C0", "after P step"), (0, "C1", "after V step")):
                chosen = steps[(steps % 2 == parity) & (steps > 0)]
                axis.plot(chosen / 2, gaps[chosen], "o", color=colour, ms=4, label=name)
            axis.plot(0, gaps[0], "ks", ms=4, label="start")
            axis.set_yscale("log")
            axis.set_title(f"c = {c}", fontsize=9)
            axis.set_xlabel("iteration (P, then V)")
        axes[0].set_ylabel("mean gap")
        axes[-1].legend()
        figure.suptitle("Exact PV by half steps: the first P step does most, V steps open the rest")
        figure.tight_layout()
        return save(figure, folder, "half_steps")


def inner(outcomes: dict[tuple[str, int, int], list[Outcome]], folder: Path) -> Path:
    """Linearized V steps per P step, T = 1..8, for all coordinates and for one at random."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(9.5, 5.2), sharex=True)
        colours = mpl.colormaps["viridis"](np.linspace(0.9, 0.05, 8))
        for axis_row, family in zip(axes, ("linearized", "uniform subspace"), strict=True):
            for axis, c in zip(axis_row, (2, 3, 4), strict=True):
                for number, colour in zip(range(1, 9), colours, strict=True):
                    gaps = padded(outcomes[family, c, number], 40)[2::2].mean(1)
                    axis.plot(np.arange(1, 21), gaps, color=colour, lw=1.3, label=f"T = {number}")
                axis.set_title(f"{family}, c = {c}", fontsize=9)
                axis.set_xscale("log")
                axis.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
                axis.minorticks_off()
                axis.set_ylim(0, None)
            axis_row[0].set_ylabel("mean gap")
        for axis in axes[1]:
            axis.set_xlabel("iteration")
        axes[0, 2].legend(fontsize=7, ncols=2, loc="lower left")
        figure.suptitle(
            "T linearized V steps per P step: nothing to gain on all coordinates (the codes are\n"
            "stuck at once), faster and a little lower with a random one"
        )
        figure.tight_layout()
        return save(figure, folder, "inner_iterations")


def families(outcomes: Outcomes, folder: Path) -> Path:
    """Exact, linearized and subspace PV against each other."""
    names = [
        "linearized PV",
        "subspace PV, greedy",
        "subspace PV, uniform",
        "subspace PV, proportional",
        "subspace PV, gain",
        "exact PV",
    ]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(11.5, 3.1))
        for c, axis in zip((2, 3, 4, 5), axes, strict=True):
            for name in names:
                gaps = padded(outcomes[c, name], 40)[1::2].mean(1)
                axis.plot(np.arange(len(gaps)), gaps, color=COLOURS[name], lw=1.4, label=name)
            _positive(axis, f"c = {c}", "V steps taken")
        axes[0].set_ylabel("mean gap after the P step")
        axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.suptitle("Exact, linearized and subspace PV (one coordinate), d = 6")
        figure.tight_layout()
        return save(figure, folder, "exact_linearized_subspace")


def _positive(axis: Axes, title: str, label: str) -> None:
    axis.set_ylim(0, None)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(label)
