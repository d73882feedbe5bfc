"""Command line: ``python -m benchmarks.llm_tune [--quick] [--json FILE] [--plots DIR]``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.processes import in_own_process
from benchmarks.report import Check, Report, format_table, parser

from .experiment import RECIPES, Settings, prepare, tune

# What a user can set; the rest follows from --quick.
_OPTIONS = (
    "model",
    "train_text",
    "test_text",
    "precision",
    "stop_after",
    "micro_batch",
    "code_lr",
    "values_lr",
    "other_lr",
    "fraction",
    "trust_ratio",
)


def _prepared(settings: Settings, folder: Path) -> dict[str, Any]:
    """Prepare the start in a folder, unless it holds one of the same settings already."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, key = folder / "start.json", settings.start_key()
    if kept.exists():
        found = json.loads(kept.read_text())
        if found["key"] == key:
            return found["start"]
    start = in_own_process(prepare, settings, folder)
    kept.write_text(json.dumps({"key": key, "start": start}) + "\n")
    return start


def _settings(arguments: Any) -> Settings:
    settings = Settings.quick() if arguments.quick else Settings()
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _checks(settings: Settings, start: dict[str, Any], rows: list[dict[str, Any]]) -> list[Check]:
    """Return the targets for subspace PV + STE on the full-size work."""
    row = next((r for r in rows if r["recipe"] == "subspace_pv_ste"), None)
    last = f"ppl_{settings.evaluate_at[-1]}"
    if row is None or last not in row or settings.model != "smollm2":
        return []
    return [
        Check.at_most("subspace PV + STE: perplexity at the last step", row[last], 100),
        Check.at_most("subspace PV + STE: seconds of opt.step()", row["step_s"], 2.5),
        Check.at_most("subspace PV + STE: peak resident GB", row["peak_bytes"] / 1e9, 5),
        Check.at_most("k-means start of the whole model, seconds", start["quantize_s"], 180),
    ]


def _plot(report: Report, start: dict[str, Any], settings: Settings, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for row in report.rows:
        left.plot(row["loss"], label=row["recipe"], linewidth=1.2)
        steps = [step for step in settings.evaluate_at if f"ppl_{step}" in row]
        right.plot(steps, [row[f"ppl_{step}"] for step in steps], "o-", label=row["recipe"])
    right.axhline(start["teacher_ppl"], color="black", linestyle=":", label="teacher")
    left.set(xlabel="step", ylabel="KL(teacher || student), nats per token", yscale="log")
    right.set(xlabel="step", ylabel="test perplexity", yscale="log")
    right.legend()
    figure.savefig(folder / "llm_tune.png", dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 whether or not its checks hold."""
    options = parser("llm_tune", __doc__ or "")
    options.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated names")
    types = {f.name: type(f.default) for f in fields(Settings)}
    for name in _OPTIONS:
        kind = {"trust_ratio": float, "stop_after": int}.get(name, types[name])
        options.add_argument(f"--{name.replace('_', '-')}", type=kind)
    options.add_argument("--work", metavar="DIR", type=Path, help="keep (or reuse) the start here")
    arguments = options.parse_args(argv)
    recipes = arguments.recipes.split(",")
    for recipe in recipes:
        if recipe not in RECIPES:
            options.error(f"unknown recipe {recipe!r}; choose from {', '.join(RECIPES)}")
    settings = _settings(arguments)
    report = Report("llm_tune", asdict(settings), packages=("torch", "transformers", "numpy"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        start = _prepared(settings, folder)
        print(
            f"teacher {start['teacher_ppl']:.2f}; k-means start {start['start_ppl']:.4g} in "
            f"{start['quantize_s']:.0f} s, {start['bits_per_weight']:.2f} bits per weight",
            flush=True,
        )
        for recipe in recipes:
            row = in_own_process(tune, settings, recipe, folder)
            report.rows.append({"ppl_0": start["start_ppl"], **row})
            if arguments.json:  # after every recipe: a long run cut short still has its rows
                report.write_json(arguments.json)
            print(f"{recipe} done", flush=True)
    report.settings["start"] = start
    report.checks.extend(_checks(settings, start, report.rows))
    columns = {"recipe": "recipe", "ppl_0": "start"}
    columns |= {f"ppl_{step}": f"{step} steps" for step in settings.evaluate_at}
    columns |= {
        "forward_backward_s": "forward+backward s",
        "step_s": "opt.step s",
        "peak_bytes": "peak bytes",
        "changed_groups": "changed groups/step",
    }
    print(format_table(report.rows, columns))
    print(report.format_checks())
    if arguments.plots:
        _plot(report, start, settings, arguments.plots)
    if arguments.json:
        report.write_json(arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
