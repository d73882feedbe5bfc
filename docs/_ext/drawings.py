"""What is on the pictures: runs of ``pvopt.convex``, and what benchmarks have measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import results
from matplotlib import pyplot
from matplotlib.figure import Figure

from pvopt.convex import (
    ExactV,
    Gain,
    Greedy,
    KeepValues,
    LinearizedV,
    Point,
    Quadratic,
    VStep,
    random_quadratic,
    random_start,
    recipes,
    restricted_smoothness,
    set_partitions,
)
from pvopt.convex.p_step import ExactP

__all__ = ["DRAWINGS"]

# Labels of formats: which text, its offset in points, and which side of it is there.
_LABELS = {
    "trellis-2": ("trellis", (-8, -4), "right"),
    "e8p-2": ("lattice", (-8, -2), "right"),
    "vq-2": ("codebook", (0, 9), "center"),
    "aqlm-2x8g8": ("2 codebooks", (7, -2), "left"),
    "gptq-2": ("grid, 2 bits", (8, 0), "left"),
    "e8p-3": ("lattice", (-6, 7), "right"),
    "aqlm-3x8g8": ("3 codebooks", (18, 20), "center"),
    "gptq-3": ("grid, 3 bits", (6, 7), "left"),
    "e8p-4": ("lattice", (-4, 9), "center"),
    "gptq-4": ("grid, 4 bits", (8, 9), "center"),
    "ternary": ("ternary", (-8, 0), "right"),
    "aqlm-1x8g8": ("codebook, groups of 8", (8, -4), "left"),
}
# One of two formats with the same bits stands a little aside, so that both arrows are seen.
_ASIDE = {"e8p-2": -0.03}


def frontier(ink: str) -> Figure:
    """Bits against perplexity, with an arrow from each start to where tuning leads."""
    report = results.read("frontier")
    full = report["settings"]["teacher"]["teacher_ppl"]
    tuned = {r["format"]: r["ppl"] for r in report["rows"] if r["method"] == "subspace_pv_ste"}
    figure, axes = pyplot.subplots(figsize=(6.8, 4.6))
    for row in report["rows"]:
        name, height = row["format"], row["ppl"]
        if row["steps"] or name not in _LABELS:
            continue
        bits = row["bits_per_weight"] + _ASIDE.get(name, 0)
        axes.plot(bits, height, "o", color="C0", ms=6)
        if name in tuned:
            arrow = {"arrowstyle": "-|>", "color": "C1", "lw": 1.6, "shrinkA": 4, "shrinkB": 0}
            axes.annotate("", (bits, tuned[name]), (bits, height), arrowprops=arrow)
        words, offset, side = _LABELS[name]
        place = tuned[name] if name == "aqlm-2x8g8" else height  # the others leave no room above
        axes.annotate(
            words, (bits, place), offset, textcoords="offset points", ha=side, fontsize=11
        )
    axes.axhline(full, color=ink, ls=":", lw=1)
    axes.text(0.95, 0.96 * full, f"full precision: {full:.1f}", va="top", fontsize=11)
    steps = report["settings"]["tuned_steps"]
    axes.plot([], [], "o", color="C0", label="calibrated start")
    axes.plot([], [], color="C1", marker="v", label=f"after {steps} steps of tuning")
    axes.set(xlabel="bits per weight", ylabel="test perplexity", yscale="log", xlim=(0.9, 5))
    ticks = [20, 30, 50, 100, 200, 500]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(19, 800)
    axes.legend(loc="upper right")
    return figure


def half_steps(ink: str) -> Figure:
    """Weights on the lines of their values: a start, a P step, a V step, a P step."""
    generator = np.random.default_rng(166)
    problem = random_quadratic(6, 10.0, generator)
    best = np.linalg.solve(problem.A, problem.b)
    start = random_start(6, 3, generator)
    run = recipes.exact_pv().run(problem, start, iterations=2)
    floor = float(problem.value(best))
    figure, panels = pyplot.subplots(1, 4, figsize=(10, 3), sharey=True)
    titles = ("a random start", "P step: values move", "V step: codes move", "P step again")
    for step, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for number, value in enumerate(run.values[step]):
            axes.axhline(value, color=f"C{number}", lw=1.5, alpha=0.8)
        places = np.arange(1, 7)
        moved = run.codes[step] != run.codes[max(step - 1, 0)]
        axes.vlines(places, best, run.weights[step], color=ink, lw=0.8, alpha=0.35)
        axes.plot(places, best, "x", color=ink, ms=6, label="best, any values")
        colours = [f"C{code}" for code in run.codes[step]]
        axes.scatter(places, run.weights[step], c=colours, s=42, zorder=3)
        axes.scatter(
            places[moved],
            run.weights[step][moved],
            s=130,
            facecolors="none",
            edgecolors=ink,
            zorder=4,
        )
        axes.set_title(f"{title}\nloss {run.objective[step] - floor:.2f}", fontsize=10)
        axes.set_xticks(places)
        axes.set_xlabel("weight")
        axes.grid(visible=False)
    return figure


def stall(ink: str) -> Figure:
    """How far the gradient step of each weight goes, over the way to its next code."""
    generator = np.random.default_rng(0)
    problem = random_quadratic(24, 100.0, generator)
    point = recipes.linearized_pv().run(problem, random_start(24, 4, generator)).final
    gradient = problem.gradient(point.weights)
    offset = point.values - point.weights[:, None]
    downhill = -gradient[:, None] * offset > 0  # a step can only cross to values on its own side
    needed = np.where(downhill, np.abs(offset), np.inf).min(1) / 2
    share = np.abs(gradient) / needed
    order = np.argsort(-share)
    figure, axes = pyplot.subplots(figsize=(6.8, 3))
    own = share / np.diag(problem.curvature)
    places = np.arange(1, 25)
    axes.bar(
        places - 0.2, (share / problem.smoothness)[order], 0.4, label="step 1/L, L of all weights"
    )
    axes.bar(places + 0.2, own[order], 0.4, label="step 1/L of this weight alone")
    axes.axhline(1, color=ink, ls="--", lw=1)
    axes.annotate(
        "a code changes from here on",
        (24.5, 1),
        (0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=10,
    )
    axes.set(
        xlabel="weights, by the length of their step",
        ylabel="share of the way",
        xticks=[1, 6, 12, 18, 24],
    )
    axes.set_xlim(0.3, 24.7)
    axes.legend(loc="upper right")
    return figure


def traps(ink: str) -> Figure:
    """The share of all partitions of six weights that a method cannot leave."""
    methods: dict[str, VStep] = {
        "linearized": LinearizedV(),
        "subspace, greedy": LinearizedV(subspace=Greedy(1)),
        "subspace, gain": LinearizedV(subspace=Gain(1)),
        "exact": ExactV(),
    }
    shares: dict[str, list[float]] = {name: [] for name in methods}
    for count in (2, 3, 4, 5):
        codes = set_partitions(6, count)
        codes = codes[codes.max(1) == count - 1]
        stuck: dict[str, list[float]] = {name: [] for name in methods}
        for seed in range(3):
            problem = random_quadratic(6, 100.0, np.random.default_rng(seed))
            fitted = ExactP().step(problem, Point(codes, np.zeros((len(codes), count))))
            for name, method in methods.items():
                after = method.step(problem, fitted).point.weights
                stuck[name].append(float((after == fitted.weights).all(-1).mean()))
        for name, found in stuck.items():
            shares[name].append(float(np.mean(found)))
    figure, axes = pyplot.subplots(figsize=(6.8, 3))
    for number, (name, found) in enumerate(shares.items()):
        axes.bar(np.arange(2, 6) + 0.2 * (number - 1.5), found, 0.2, label=name)
    axes.set(
        xlabel="values that six weights share", ylabel="share of partitions", xticks=[2, 3, 4, 5]
    )
    axes.set_ylim(0, 1)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, title="V step")
    return figure


def subspaces(ink: str) -> Figure:
    """The smoothness constant of random subsets, as a share of that of all weights."""
    generator = np.random.default_rng(0)
    problem = random_quadratic(48, 100.0, generator)
    sizes = [1, 2, 4, 8, 16, 24, 36, 48]
    found = []
    for size in sizes:
        subsets = np.stack([generator.permutation(48)[:size] for _ in range(60)])
        found.append(restricted_smoothness(problem.curvature, subsets) / problem.smoothness)
    figure, axes = pyplot.subplots(figsize=(6.8, 3))
    low, middle, high = np.quantile(found, [0.1, 0.5, 0.9], axis=1)
    shares = np.array(sizes) / 48
    axes.fill_between(shares, low, high, color="C0", alpha=0.2, lw=0, label="8 of 10 subsets")
    axes.plot(shares, middle, "o-", color="C0", label="median")
    axes.set(
        xlabel="share of the weights that may move",
        ylabel="$L_S$ over $L$",
        xlim=(0, 1.01),
        ylim=(0, 1.05),
    )
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.legend(loc="upper left")
    return figure


def wandering(ink: str) -> Figure:
    """Two weights on a grid: the path of straight-through training, and that of PV."""
    best = np.array([0.3, 0.6])
    matrix = np.array([[2.0, 1.3], [1.3, 2.0]])
    problem = Quadratic(matrix, matrix @ best)
    start = Point(np.array([3, 0]), np.array([-1.0, 0.0, 1.0, 2.0]))
    kept = KeepValues()  # a fixed grid: only the codes move, which a plane can show
    through = recipes.ste(p_step=kept).run(problem, start, iterations=40)
    single = recipes.subspace_pv(Gain(), p_step=kept).run(problem, start)
    floor = float(problem.value(best))
    exact = recipes.exact_pv(p_step=kept).run(problem, start)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.9), width_ratios=[1, 1.2])
    x, y = np.meshgrid(np.linspace(-1.5, 2.5, 80), np.linspace(-1.5, 2.5, 80))
    height = problem.value(np.stack([x, y], -1)) - floor
    levels = np.geomspace(0.03, 12, 8)
    left.contour(x, y, height, levels=levels, colors=ink, linewidths=0.5, alpha=0.4)
    grid = np.stack(np.meshgrid(start.values, start.values), -1).reshape(-1, 2)
    left.plot(*grid.T, "o", color=ink, alpha=0.4, ms=4)
    left.plot(*best, "*", color=ink, ms=10)
    visits = through.weights[::2] + np.random.default_rng(0).uniform(-0.07, 0.07, (41, 2))
    left.plot(*visits.T, "-", color="C1", lw=0.9)
    left.set(xlabel="weight 1", ylabel="weight 2", xticks=[-1, 0, 1, 2], yticks=[-1, 0, 1, 2])
    left.grid(visible=False)
    steps = np.arange(41)
    above = through.objective[::2] - floor
    right.plot(steps, above, "-", color="C1", marker=".", lw=1, label="straight-through")
    runs = {"PV, exact": (exact, "C0", "s"), "PV, one code at a time": (single, "C2", "^")}
    for name, (run, colour, marker) in runs.items():
        left.plot(*run.weights[::2].T, "-", marker=marker, color=colour, lw=2, ms=6)
        own = run.objective[::2] - floor
        own = np.concatenate([own, np.full(41 - len(own), own[-1])])
        right.plot(steps, own, color=colour, lw=2, label=name)
    right.set(xlabel="step", ylabel="loss above the minimum", ylim=(0, 2.2))
    right.legend(loc="upper right")
    figure.tight_layout()
    return figure


DRAWINGS: dict[str, Callable[[str], Any]] = {
    "frontier": frontier,
    "half_steps": half_steps,
    "stall": stall,
    "traps": traps,
    "subspaces": subspaces,
    "wandering": wandering,
}
