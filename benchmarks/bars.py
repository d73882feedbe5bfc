"""Rows of a report as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["bars"]


def bars(
    rows: Sequence[Mapping[str, Any]],
    label: str,
    value: str,
    file: Path,
    *,
    title: str,
    unit: str,
) -> Path:
    """Draw one value of each row, the first row on top.

    Args:
        rows: of a report.
        label: key of a row's name.
        value: key of its number, not negative.
        file: a PNG to write; its folder is made as needed.
        title: above the picture.
        unit: of the value.

    Returns:
        The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.28 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, no global state of pyplot
    axes = figure.subplots()
    drawn = axes.barh([str(row[label]) for row in rows], [float(row[value]) for row in rows])
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    return file
