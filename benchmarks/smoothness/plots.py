"""The decay of the smoothness constant as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

__all__ = ["decay"]

_LABELS = {
    "power": "power iteration on Hessian-vector products",
    "quotient": "difference quotients of gradients",
}


def decay(rows: Sequence[dict[str, Any]], folder: Path, *, title: str) -> Path:
    """Draw both constants against the share of the weights, and what a proportional fall would be.

    Args:
        rows: of the experiment ``constants``.
        folder: where the picture goes.
        title: above it.

    Returns:
        The file.
    """
    mpl.use("Agg")  # files only, wherever it runs
    from matplotlib import pyplot

    shares = [row["fraction"] for row in rows]
    figure, axis = pyplot.subplots(figsize=(7.2, 4.6), layout="constrained")
    for estimator, colour in (("power", "C0"), ("quotient", "C1")):
        values = [row[estimator] for row in rows]
        axis.plot(shares, values, "o-", color=colour, label=_LABELS[estimator], lw=1.8, ms=5)
        for row in rows:
            points = [c for draw in row[f"{estimator}_by_draw_and_step"] for c in draw]
            axis.plot([row["fraction"]] * len(points), points, "_", color=colour, alpha=0.6, ms=11)
        proportional = [values[-1] * share / shares[-1] for share in shares]
        axis.plot(shares, proportional, ":", color="0.5", lw=1.2)
    axis.plot([], [], ":", color="0.5", lw=1.2, label="in proportion to the share")
    axis.plot([], [], "_", color="0.4", ms=11, label="single points of the gradient path")
    axis.set(xscale="log", yscale="log", title=title)
    axis.set_xlabel("share of the weights that may move")
    axis.set_ylabel("smoothness constant $L_S$")
    labels = [""] * (len(shares) - 1) + [f"{shares[-1]:.0%}"]
    shown = 0.0
    for place, share in enumerate(shares[:-1]):
        if share > 1.2 * shown and shares[-1] > 1.2 * share:  # else too near to a neighbour
            labels[place], shown = f"{share:.0%}", share
    axis.set_xticks(shares, labels)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "decay.png"
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file
