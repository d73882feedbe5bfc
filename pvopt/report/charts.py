"""The charts of a page, as specifications of Vega-Lite; colours and fonts are the page's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from .layers import layer_cells
from .runs import ReportedRun
from .series import thinned

__all__ = ["COLORS", "Figure", "figures"]

# Told apart by most people, on white and on black.
COLORS = ("#0f7fd1", "#e07b00", "#1a9a5c", "#c94fa0", "#8a6fe8", "#a08000", "#d2493b", "#20a0b0")
_WHOLE = alt.Axis(format="d", tickMinStep=1, labelExpr="datum.value % 1 ? '' : datum.label")
_FEW = 30  # points that are marked one by one


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its title.

    Args:
        title: what is shown.
        note: how to read it.
        spec: of Vega-Lite.
    """

    title: str
    note: str
    spec: Mapping[str, Any]


def figures(runs: Sequence[ReportedRun]) -> list[Figure]:
    """Return all charts that the runs have something to show in.

    Args:
        runs: side by side.

    Raises:
        ImportError: without altair.
    """
    steps = {run.name: _step_rows(run) for run in runs}
    student = {run.name: run.evaluations("student") for run in runs}
    loss = {run.name: run.settings.get("loss") for run in runs}
    divergences = {name: rows for name, rows in steps.items() if loss[name] == "kl"}
    other_losses = {name: rows for name, rows in steps.items() if loss[name] != "kl"}
    original = {
        run.name: run.evaluations("teacher")[-1]["perplexity"]
        for run in runs
        if run.evaluations("teacher")
    }
    colors = dict(zip((run.name for run in runs), itertools.cycle(COLORS), strict=False))
    curves = functools.partial(_curves, colors)
    wanted = [
        curves(
            divergences,
            "loss",
            "KL divergence in training",
            "KL(original ‖ model) on each step's batch, before the step, in nats per token",
            ratios=True,
        ),
        curves(
            other_losses,
            "loss",
            "Loss in training",
            "of each step's batch, before the step, in nats per token",
            ratios=True,
        ),
        curves(
            student,
            "perplexity",
            "Perplexity of the held-out text",
            "dashed: the original in full precision",
            ratios=True,
            level=original,
        ),
        curves(
            student,
            "divergence",
            "KL divergence on the held-out text",
            "KL(original ‖ model), in nats per token",
            ratios=True,
        ),
        curves(
            steps,
            "changed_fraction",
            "Changed codes",
            "share of all groups whose code changed in a step",
            format=".3~p",
        ),
        curves(steps, "lr", "Learning rate of the codes", "after warm-up and schedule"),
        *_maps(
            {run.name: layer_cells(run.code_changes) for run in runs},
            "Changes of codes by layer",
            "how often the code of a group changed in all steps, on average",
            format=".3~g",
        ),
        *_maps(
            {run.name: layer_cells(run.errors[1]) for run in runs if run.errors[0] == "outputs"},
            "Errors of layers' outputs",
            "relative to the outputs of the original, when the layer was calibrated",
            format=".3~p",
        ),
        *_maps(
            {run.name: layer_cells(run.errors[1]) for run in runs if run.errors[0] == "weights"},
            "Errors of weights by layer",
            "distance from the original's weight, relative to its size",
            format=".3~p",
        ),
        *_maps(
            {run.name: _bit_cells(run) for run in runs},
            "Bits per weight by layer",
            "codes, and codebooks and scales in 16 bits",
            format=".3~f",
        ),
    ]
    return [figure for figure in wanted if figure is not None]


def _step_rows(run: ReportedRun) -> list[dict[str, Any]]:
    rate = run.settings.get("code_lr")
    rows = thinned(run.steps, ["loss", "changed_fraction", "changed_groups", "lr_factor"])
    known = isinstance(rate, int | float)
    return [{**row, "lr": rate * row["lr_factor"] if known else None} for row in rows]


def _bit_cells(run: ReportedRun) -> list[dict[str, Any]]:
    if run.storage is None:
        return []
    weights = run.storage.weights
    return layer_cells(
        {weight.name: weight.bits_per_weight_16 for weight in weights},
        {weight.name: weight.count for weight in weights},
    )


def _curves(
    colors: Mapping[str, str],
    series: Mapping[str, Iterable[Mapping[str, Any]]],
    field: str,
    title: str,
    note: str,
    *,
    format: str = ".5~g",
    ratios: bool = False,
    level: Mapping[str, float | None] | None = None,
) -> Figure | None:
    """Draw a field of records over the steps, a line for each run, or nothing.

    Where ratios are what counts, and large, the axis is logarithmic.
    """
    rows = [
        {"run": name, "step": record["step"], "value": record[field]}
        for name, records in series.items()
        for record in records
        if record.get(field) is not None
    ]
    if not rows:
        return None
    levels = [
        {"run": name, "value": value} for name, value in (level or {}).items() if value is not None
    ]
    values = [row["value"] for row in (*rows, *levels)]
    logarithmic = ratios and min(values) > 0 and max(values) > 5 * min(values)
    y = alt.Y(
        "value:Q",
        title=None,
        scale=alt.Scale(type="log" if logarithmic else "linear", zero=False, nice=not logarithmic),
        axis=alt.Axis(format=format, tickCount=5),
    )
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    color = alt.Color("run:N", scale=scale, legend=None)  # the page has one for all charts
    known = [alt.Tooltip("run:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=format)]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("step:Q", title="step", axis=_WHOLE), y=y, color=color
    )
    few = len(rows) <= _FEW * len(series)
    layers: list[Any] = [
        base.mark_line(strokeWidth=1.8),
        base.mark_circle(size=40 if few else 90, opacity=1 if few else 0).encode(tooltip=known),
    ]
    if levels:
        layers.append(
            alt.Chart(alt.Data(values=levels))
            .mark_rule(strokeDash=[5, 4], strokeWidth=1.5)
            .encode(
                y=y,
                color=color,
                tooltip=[alt.Tooltip("run:N"), alt.Tooltip("value:Q", format=format)],
            )
        )
    chart = alt.layer(*layers).properties(width="container", height=220)
    return Figure(title=title, note=note, spec=chart.to_dict())


def _maps(
    cells: Mapping[str, Sequence[Mapping[str, Any]]], title: str, note: str, *, format: str
) -> list[Figure]:
    """Draw a map of blocks and kinds of layers for each run, all in the same colours."""
    shown = {name: rows for name, rows in cells.items() if rows}
    values = [row["value"] for rows in shown.values() for row in rows]
    kinds = list(dict.fromkeys(row["kind"] for rows in shown.values() for row in rows))
    found = {row["block"] for rows in shown.values() for row in rows}
    blocks = sorted(found, key=lambda block: (not block.isdecimal(), block.zfill(12)))
    figures = []
    for name, rows in shown.items():
        chart = (
            alt.Chart(alt.Data(values=list(rows)))
            .mark_rect()
            .encode(
                x=alt.X(
                    "block:O",
                    title="block",
                    scale=alt.Scale(domain=blocks),
                    axis=alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=5),
                ),
                y=alt.Y(
                    "kind:N",
                    title=None,
                    scale=alt.Scale(domain=kinds),
                    axis=alt.Axis(labelLimit=120),
                ),
                color=alt.Color(
                    "value:Q",
                    title=None,
                    scale=alt.Scale(scheme="viridis", domain=[min(values), max(values)]),
                    legend=alt.Legend(
                        orient="top", gradientThickness=10, format=format, tickCount=3
                    ),
                ),
                tooltip=[
                    alt.Tooltip("block:O"),
                    alt.Tooltip("kind:N"),
                    alt.Tooltip("value:Q", format=format),
                    alt.Tooltip("weights:Q"),
                ],
            )
            .properties(width="container", height=20 * len(kinds))
        )
        which = f"{title}: {name}" if len(cells) > 1 else title
        figures.append(Figure(title=which, note=note, spec=chart.to_dict()))
    return figures
