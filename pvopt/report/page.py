"""The page itself: one file that needs no other."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pvopt.core.text_files import replace_text
from pvopt.formats.places import check_room

from .runs import ReportedRun
from .samples import Sample
from .series import MOST_POINTS
from .tables import settings_rows, summary_rows

__all__ = ["write_report"]

_MARK = '<meta name="generator" content="pvopt report">'


def write_report(
    runs: Sequence[ReportedRun], file: str | Path, *, samples: Sequence[Sample] = ()
) -> Path:
    """Write a page about runs and checkpoints.

    Args:
        runs: side by side, as :func:`read_runs` returns them.
        file: the page; replaced if it is one of ours.
        samples: texts that models have written.

    Returns:
        The file.

    Raises:
        ValueError: if there is no run, or something else is in the place of the file.
        ImportError: without altair or vl-convert-python.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> import pvopt
        >>> from pvopt.formats import save
        >>> from pvopt.report import write_report
        >>> folder, model = Path(tempfile.mkdtemp()) / "grid", torch.nn.Linear(8, 4)
        >>> _ = save(folder, model, pvopt.quantize_(model, pvopt.UniformGrid(bits=2)))
        >>> from pvopt.report import read_runs
        >>> page = write_report(read_runs([folder]), folder.parent / "report.html")
        >>> "Bits per weight by layer" in page.read_text("utf-8")
        True
    """
    from .charts import COLORS, figures

    if not runs:
        raise ValueError("runs must hold at least one run")
    file = Path(file)
    check_place(file)
    charts = figures(runs)
    tuned = [run for run in runs if run.settings]
    settings = settings_rows(tuned)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = files("pvopt.report").joinpath("page.html.jinja").read_text("utf-8")
    text = environment.from_string(template).render(
        mark=_MARK,
        version=version("pvopt"),
        runs=[
            {
                "name": run.name,
                "folder": str(run.folder),
                "color": color,
                "commands": _commands(run),
            }
            for run, color in zip(runs, itertools.cycle(COLORS), strict=False)
        ],
        charts=charts,
        most_points=MOST_POINTS,
        most_steps=max(len(run.steps) for run in runs),
        specs=_script([chart.spec for chart in charts]),
        summary=summary_rows(runs),
        settings=settings,
        tuned=[run.name for run in tuned],
        differing=[row for row in settings if row.differs],
        samples=_by_prompt(samples),
        vega=_vega(),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, text)
    return file


def check_place(file: str | Path) -> None:
    """Raise unless a page may be written to a file.

    Raises:
        ValueError: if something else is in the place, or nothing can be written there.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file for the page")
    if file.exists() and not (file.is_file() and _is_page(file)):  # opening a FIFO would wait
        raise ValueError(f"{file} is no page of pvopt report, it is not replaced")
    check_room(file)


def _is_page(file: Path) -> bool:
    with open(file, encoding="utf-8", errors="replace") as stream:
        return _MARK in stream.read(1000)


def _commands(run: ReportedRun) -> list[str]:
    """Return the command lines that a run was made with, as far as they are known."""
    found = run.metadata.get("commands")
    return [str(line) for line in found] if isinstance(found, list) else []


def _script(value: Any) -> str:
    """Return JSON that ends no element of HTML."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _by_prompt(samples: Sequence[Sample]) -> Mapping[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.prompt, []).append(sample)
    return found


@functools.cache
def _vega() -> str:
    """Return the program that draws the charts: Vega, Vega-Lite and Vega-Embed."""
    import altair
    import vl_convert

    release = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", release).replace(
        "</script", "<\\/script"
    )
