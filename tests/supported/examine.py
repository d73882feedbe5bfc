"""What the command line does with models of many architectures: the table of the documentation.

``PYTHONPATH=tests python -m supported.examine`` examines all of them anew and writes the table.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

from supported.architectures import ARCHITECTURES, FLAGS, save_model

from pvopt.cli import main
from pvopt.formats import storage_report
from pvopt.tuning import load_student

DOCS = Path(__file__).parents[2] / "docs"
TABLE, PAGE = DOCS / "supported-models.json", DOCS / "supported-models.md"
STAGES = ("quantize", "calibrate", "tune", "resume", "eval", "generate")
_FORMAT = ["--format", "grid:4g16"]
_TUNE = [
    "--steps", "1", "--batch", "1", "--length", "32", "--eval-windows", "1", "--dtype", "float32",
    "--base", "sgd",
]  # fmt: skip


def examine(kind: str) -> dict[str, str | float]:
    """Take a tiny model of an architecture through all stages.

    Returns:
        The model's class; for every stage ``yes`` or why not; the share of the matrices' weights
        that is quantized, in percent.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        with contextlib.redirect_stderr(io.StringIO()):
            name = save_model(kind, str(place / "model"))
        text = place / "text.txt"
        text.write_text("so long, and thanks for all the fish.\n\n" * 40)
        model, made, run = str(place / "model"), str(place / "made"), str(place / "run")
        form = [*_FORMAT, *FLAGS.get(kind, [])]
        calibration = ["--calibration", str(text), "--calibration-tokens", "256"]
        commands = {
            "quantize": ["quantize", "--model", model, *form, "--out", str(place / "plain")],
            "calibrate": [
                "quantize", "--model", model, *form, *calibration, "--calibration-length", "32",
                "--out", made,
            ],
            "tune": ["tune", "--checkpoint", made, "--text", str(text), *_TUNE, "--out", run],
            "resume": ["tune", "--resume", "--out", run, "--steps", "2"],
            "eval": [
                "eval", "--checkpoint", run, "--text", str(text), "--context", "32", "--windows",
                "2",
            ],
        }  # fmt: skip
        row: dict[str, str | float] = {"class": name, "flags": " ".join(FLAGS.get(kind, []))}
        for stage, command in commands.items():
            row[stage] = _run(command)[0]
        row["generate"] = _generate(run)
        row["share"] = _share(place / "plain")
    return row


def _run(command: list[str]) -> tuple[str, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    last = err.getvalue().strip().splitlines()[-1] if code else "yes"
    return last.removeprefix("pvopt: error: "), out.getvalue(), err.getvalue()


def _generate(run: str) -> str:
    command = ["generate", "--checkpoint", run, "--prompt", "so long", "--tokens", "8"]
    (done, packed, notes), (dense_done, dense, _) = _run(command), _run([*command, "--dense"])
    if done != "yes" or dense_done != "yes":
        return done if done != "yes" else dense_done
    if packed != dense:
        return "packed and dense differ"
    kept = [line for line in notes.splitlines() if "decoded" in line]
    if not kept:
        return "packed"
    return "decoded" if "all weights" in kept[-1] else "packed in part"


def _share(folder: Path) -> float:
    """Return the percentage, counted from the files by itself."""
    if not folder.is_dir():
        return 0.0
    student, weights, _ = load_student(folder)
    model = student.model
    apart = {
        id(getattr(module, "weight", None))
        for module in (*model.modules(), model.get_output_embeddings())
        if "Embedding" in type(module).__name__ or module is model.get_output_embeddings()
    }
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in apart)
    count = sum(weights.parameter(name).numel() for name in weights)
    assert count == storage_report(folder).count
    return round(100 * count / matrices, 1)


def page(table: dict[str, dict[str, str | float]]) -> str:
    """Return the page of the documentation."""
    header = ["model", *STAGES, "share quantized", "flags of quantize"]
    lines = [
        "# Supported models",
        "",
        f"{len(table)} architectures of transformers, each as a tiny random model, went through",
        "the command line: quantized to 4 bits with and without a text, tuned for a step, resumed",
        "for another one, evaluated beside the original; then they continued a prompt. Packed",
        "layers gave the same tokens as decoded ones everywhere. *Packed in part* and *decoded*",
        "mean that some or all weights are decoded first, because the model does more with them",
        "than to multiply, or they are experts. The share is that of all matrices but embeddings",
        "and output heads. For other models, `python -m pvopt quantize --dry-run` shows layers;",
        "whatever is not supported ends in a sentence that says so.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
    ]
    for kind, row in sorted(table.items()):
        flags = f"`{row['flags']}`" if row["flags"] else ""
        cells = [f"`{kind}`", *(str(row[stage]) for stage in STAGES), f"{row['share']} %", flags]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    found = json.loads(TABLE.read_text()) if TABLE.exists() and sys.argv[1:] else {}
    for kind in sys.argv[1:] or ARCHITECTURES:
        found[kind] = examine(kind)
        print(kind, found[kind], flush=True)
    TABLE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(found))
