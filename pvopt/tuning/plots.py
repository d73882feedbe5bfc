"""Curves of a tuning run as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["plot_curves"]


def plot_curves(records: Iterable[Mapping[str, Any]], file: str | Path, *, title: str = "") -> None:
    """Draw loss and perplexity over the steps.

    Args:
        records: of a :class:`~pvopt.tuning.records.RecordsFile`.
        file: a PNG to write.
        title: above both panels.

    Raises:
        ImportError: without matplotlib.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "curves.png"
        >>> plot_curves([{"kind": "step", "step": n, "loss": 2.0 / n} for n in (1, 2, 3)], file)
        >>> file.exists()
        True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

    records = list(records)
    steps = [r for r in records if r["kind"] == "step" and r["loss"] is not None]
    evaluations = [r for r in records if r["kind"] == "evaluation" and r["perplexity"] is not None]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, no global state of pyplot
    loss, quality = figure.subplots(1, 2)
    if title:
        figure.suptitle(title)
    loss.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="C0", lw=1.5)
    loss.set(xlabel="step", ylabel="training loss (nats per token)", yscale="log")
    student = [r for r in evaluations if r["model"] == "student"]
    quality.plot(
        [r["step"] for r in student],
        [r["perplexity"] for r in student],
        color="C1",
        marker="o",
        label="quantized",
    )
    teacher = [r for r in evaluations if r["model"] == "teacher"]
    if teacher:
        value = teacher[-1]["perplexity"]
        quality.axhline(value, color="C2", ls="--", label=f"full precision ({value:.4g})")
    quality.set(xlabel="step", ylabel="held-out perplexity", yscale="log")
    if student or teacher:
        quality.legend()
    for panel in (loss, quality):
        panel.grid(alpha=0.3, which="both")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        low, high = panel.get_ylim()
        if high < 100 * low:  # less than two powers of ten: label more than the powers
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.yaxis.set_minor_formatter(StrMethodFormatter(""))
    figure.savefig(file, dpi=120)
