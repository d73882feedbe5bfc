"""Bits against perplexity as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

__all__ = ["pareto"]

# By the first part of a row's name, so that the methods of one kind of format look alike.
_MARKERS = {
    "rtn": "s",
    "gptq": "s",
    "aqlm": "o",
    "kmeans": "o",
    "vq": "o",
    "e8p": "D",
    "trellis": "P",
}

_SIDES = ((8, "left"), (-8, "right"))
# Half of the width of a marker, in pixels.
_HALF = 6

# Starts that are worse than the full-precision model by such a factor are noise: they are drawn at
# the upper edge, so that the others do not lie on one line.
_FAR = 40


def _text(perplexity: float) -> str:
    return f"{perplexity:.3g}" if perplexity < 1000 else f"{perplexity:,.0f}"


# Where the name of a point may be, by points from its middle: the first place that is free.
_PLACES = (
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 8, "center", "bottom"),
    (0, -8, "center", "top"),
    *((x, y, side, "center") for y in (10, -10, 20, -20, 30, -30) for x, side in _SIDES),
)


def _label(axes: Any, names: Sequence[tuple[str, Any]], others: Sequence[Any]) -> None:
    """Write the name of every point beside it, where it covers no other name and no point."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()  # the places of points are known from now on
    points = [axes.transData.transform(place) for place in (*(p for _, p in names), *others)]
    taken = [Bbox.from_bounds(x - _HALF, y - _HALF, 2 * _HALF, 2 * _HALF) for x, y in points]
    for name, place in names:
        for x, y, side, middle in _PLACES:
            text = axes.annotate(
                name, place, (x, y), textcoords="offset points", ha=side, va=middle, fontsize=7
            )
            box = text.get_window_extent().padded(1)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def pareto(rows: Sequence[dict[str, Any]], teacher_ppl: float, folder: Path) -> Path:
    """Draw every start, the front of the best, and where tuning leads from there.

    Args:
        rows: of the benchmark.
        teacher_ppl: perplexity of the full-precision model.
        folder: where the picture goes.

    Returns:
        The file.
    """
    mpl.use("Agg")  # files only, wherever it runs
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(9, 5.4), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors  # pyright: ignore[reportAttributeAccessIssue]
    limit = _FAR * teacher_ppl
    starts = [row for row in rows if row["steps"] == 0]
    ordered = sorted(starts, key=lambda row: (row["bits_per_weight"], row["ppl"]))
    names: list[tuple[str, tuple[float, float]]] = []
    for number, row in enumerate(ordered):
        bits, colour = row["bits_per_weight"], colours[number % len(colours)]
        marker = _MARKERS.get(row["format"].partition("-")[0], "^")
        beyond = row["ppl"] > limit
        height = min(row["ppl"], limit)
        label = f"{row['format']}: {_text(row['ppl'])}{' (beyond)' if beyond else ''}"
        tuned = [r for r in rows if r["steps"] and r["format"] == row["format"]]
        if tuned:
            best = min(tuned, key=lambda r: r["ppl"])
            label += f", tuned {_text(best['ppl'])}"
            axes.annotate(
                "",
                (bits, best["ppl"]),
                (bits, height),
                arrowprops={"arrowstyle": "->", "color": colour},
            )
            axes.plot(bits, best["ppl"], "*", color=colour, markersize=11)
        axes.plot(bits, height, marker, color=colour, label=label, markeredgecolor="black")
        names.append((row["format"], (bits, height)))
        if beyond:
            axes.annotate("↑", (bits, height), (0, 5), textcoords="offset points", ha="center")
    front: list[tuple[float, float]] = []
    for row in ordered:
        if row["ppl"] < (front[-1][1] if front else limit):
            front.append((row["bits_per_weight"], row["ppl"]))
    if front:
        points = zip(*front, strict=True)
        axes.plot(*points, color="gray", lw=1, zorder=0, label="front of the starts")
    axes.axhline(teacher_ppl, color="black", ls=":", label=f"full precision: {teacher_ppl:.3g}")
    axes.set(xlabel="bits per quantized weight", ylabel="test perplexity")
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.grid(axis="y", color="0.9")
    figure.legend(loc="outside right upper", fontsize="small")
    arrows = [(r["bits_per_weight"], r["ppl"]) for r in rows if r["steps"]]
    _label(axes, names, arrows)
    file = folder / "frontier.png"
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file
