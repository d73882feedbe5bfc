"""Bits against perplexity as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

__all__ = ["pareto"]

# By the first part of a row's name, so that the methods of one kind of format look alike.
_MARKERS = {"rtn": "s", "gptq": "s", "aqlm": "o", "kmeans": "o", "vq": "o", "e8p": "D"}


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
    ordered = sorted(rows, key=lambda row: (row["bits_per_weight"], row["ppl"]))
    for number, row in enumerate(ordered):
        bits, colour = row["bits_per_weight"], colours[number % len(colours)]
        marker = _MARKERS.get(row["format"].partition("-")[0], "^")
        label = f"{row['format']}: {row['ppl']:.3g}"
        if "tuned_ppl" in row:
            label += f", tuned {row['tuned_ppl']:.3g}"
            axes.annotate(
                "",
                (bits, row["tuned_ppl"]),
                (bits, row["ppl"]),
                arrowprops={"arrowstyle": "->", "color": colour},
            )
            axes.plot(bits, row["tuned_ppl"], "*", color=colour, markersize=11)
        axes.plot(bits, row["ppl"], marker, color=colour, label=label, markeredgecolor="black")
    front: list[tuple[float, float]] = []
    for row in ordered:
        if not front or row["ppl"] < front[-1][1]:
            front.append((row["bits_per_weight"], row["ppl"]))
    axes.plot(*zip(*front, strict=True), color="gray", lw=1, zorder=0, label="front of the starts")
    axes.axhline(teacher_ppl, color="black", ls=":", label=f"full precision: {teacher_ppl:.3g}")
    axes.set(xlabel="bits per quantized weight", ylabel="test perplexity", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="0.9")
    figure.legend(loc="outside right upper", fontsize="small")
    file = folder / "init.png"
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file
