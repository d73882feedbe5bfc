"""Tables of the documentation, written anew by every build.

Measured ones come from the files that benchmarks leave in ``benchmarks/results``, others from what
the library says of itself. Pages include them.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from written import write

import pvopt
from pvopt.formats import FORMATS as WRITERS
from pvopt.formats import Checkpoint, Writer
from pvopt.parametrizations import PARAMETRIZATIONS
from pvopt.spaces import SPACES

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

# Rows of the benchmark of formats, as a reader would ask for them.
FORMATS = {
    "rtn-4": ("grid, 4 bits, rounded to nearest", "grid:4g128"),
    "gptq-4": ("grid, 4 bits", "grid:4g128"),
    "rtn-3": ("grid, 3 bits, rounded to nearest", "grid:3g128"),
    "gptq-3": ("grid, 3 bits", "grid:3g128"),
    "rtn-2": ("grid, 2 bits, rounded to nearest", "grid:2g128"),
    "gptq-2": ("grid, 2 bits", "grid:2g128"),
    "aqlm-1x8g8": ("one codebook, groups of 8", "1x8g8"),
    "aqlm-2x8g8": ("two codebooks, groups of 8", "2x8g8"),
    "aqlm-3x8g8": ("three codebooks, groups of 8", "3x8g8"),
    "aqlm-1x16g8": ("one codebook of 65,536 entries", "1x16g8"),
    "kmeans-2x8g8": ("two codebooks, groups of 8, without data", "2x8g8"),
    "vq-2": ("one codebook, groups of 4", "vq:8g4"),
    "e8p-2": ("lattice, 2 bits", "had+e8p:2"),
    "e8p-3": ("lattice, 3 bits", "had+e8p:3"),
    "e8p-4": ("lattice, 4 bits", "had+e8p:4"),
    "trellis-2": ("trellis, 2 bits", "had+trellis:2@192x1"),
    "trellis-3": ("trellis, 3 bits", "had+trellis:3@192x1"),
    "ternary": ("ternary", "ternary:g64"),
    "binary": ("binary", "binary:g64"),
    "2:4-fit": ("2:4 sparse, by magnitude", "2:4"),
    "2:4-obs": ("2:4 sparse, one shot", "2:4"),
    "2:4-iterative-obs": ("2:4 sparse", "2:4"),
    "50%-fit": ("half sparse, by magnitude", "sparse:50%"),
    "50%-obs": ("half sparse, one shot", "sparse:50%"),
    "50%-iterative-obs": ("half sparse", "sparse:50%"),
}
# The first page shows these.
_BEST = (
    "gptq-4",
    "e8p-4",
    "e8p-3",
    "trellis-2",
    "e8p-2",
    "vq-2",
    "aqlm-2x8g8",
    "gptq-2",
    "ternary",
)
# Worse than this times the full-precision model is noise.
_NOISE = 40

# Which servers a format is for, by what `pvopt export --to` calls it.
SERVERS = {
    "compressed-tensors": "vLLM, transformers",
    "gptq": "vLLM, transformers",
    "aqlm": "transformers",
    "gguf": "llama.cpp, Ollama",
    "exl3": "ExLlamaV3",
}
_EXL3 = "pad128x128[free=False]+scale:in-out[weighted=False]+had128+trellis:2l16-mul1@mma/tensor"
EXPORTED = (
    "grid:4g32s", "grid:2g32s", "grid:8g32s", "grid:4g32z", "grid:2g32z", "perm+grid:4g32s",
    "grid:4g32", "affine:4g32", "ternary:g32", "binary:g32", "2x8g8", "vq:8g4", "2x8g8/32",
    "had+e8p:2", _EXL3,
)  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return a table in Markdown whose last columns are numbers."""
    rule = ["---"] * (len(heads) - numbers) + ["--:"] * numbers
    lines = [[cell.replace("|", "\\|") for cell in cells] for cells in (heads, rule, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def read(name: str) -> dict[str, Any]:
    """Return what a benchmark has written."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def shown(value: float) -> str:
    """Write a figure with three digits."""
    if value < 1000:
        return f"{value:#.3g}".removesuffix(".")
    return f"{float(f'{value:.3g}'):,.0f}"


def frontier(report: dict[str, Any], names: Sequence[str] | None = None) -> str:
    """Return formats by bits, with the perplexity before and after tuning."""
    full = report["settings"]["teacher"]["teacher_ppl"]
    steps = report["settings"]["tuned_steps"]
    tuned = {r["format"]: r["ppl"] for r in report["rows"] if r["method"] == "subspace_pv_ste"}
    starts = [row for row in report["rows"] if not row["steps"]]
    chosen = [row for row in starts if names is None or row["format"] in names]
    chosen.sort(key=lambda row: (-row["bits_per_weight"], row["ppl"]))
    rows = [["full precision", "", "", "32", shown(full), ""]]
    for row in chosen:
        words, short = FORMATS[row["format"]]
        after = f"**{shown(tuned[row['format']])}**" if row["format"] in tuned else ""
        bits = f"{row['bits_per_weight']:.2f}"
        if row["ppl"] <= _NOISE * full:
            found = shown(row["ppl"])
            rows.append([words, f"`{short}`", f"`{row['method']}`", bits, found, after])
    heads = ["weights", "format", "start", "bits", "perplexity", f"tuned, {steps} steps"]
    noise = [row for row in chosen if row["ppl"] > _NOISE * full]
    left = ", ".join(f"{FORMATS[r['format']][0]} ({shown(r['ppl'])})" for r in noise)
    return table(heads, rows, 3) + (
        f"\nNot in the table, since these models write noise: {left}.\n" if left else ""
    )


def recipes(report: dict[str, Any]) -> str:
    """Return the mean losses of all methods on the small tasks; the best one is bold."""
    runs: dict[tuple[str, str], list[float]] = {}
    for row in report["rows"]:
        runs.setdefault((row["method"], row["task"]), []).append(row["loss"])
    means = {key: statistics.mean(losses) for key, losses in runs.items()}
    methods, tasks = (list(dict.fromkeys(key[place] for key in runs)) for place in (0, 1))
    best = {t: min(means[m, t] for m in methods if m != "full precision") for t in tasks}
    rows = []
    for method in methods:
        cells = [f"{means[method, task]:.3f}" for task in tasks]
        bold = [means[method, task] == best[task] for task in tasks]
        name = f"`{method}`" if hasattr(pvopt, method) else method
        rows.append([name, *(f"**{c}**" if b else c for c, b in zip(cells, bold, strict=True))])
    return table(["method", *tasks], rows, len(tasks))


def llm_tune(report: dict[str, Any]) -> str:
    """Return the perplexities of all recipes on the language model."""
    steps = sorted(int(key[4:]) for key in report["rows"][0] if key.startswith("ppl_"))
    rows = [
        [
            f"`{row['recipe']}`",
            *(shown(row[f"ppl_{step}"]) for step in steps),
            f"{row['changed_groups']:,}",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
        ]
        for row in sorted(report["rows"], key=lambda row: row[f"ppl_{steps[-1]}"])
    ]
    heads = ["method", *("start" if step == 0 else f"{step} steps" for step in steps)]
    return table([*heads, "changed groups per step", "peak memory"], rows, len(heads) + 1)


def plan(report: dict[str, Any]) -> str:
    """Return what runs were planned to take at most, and what they took."""
    rows = [
        [
            {"30M": "a Llama of 30 M weights", "smollm2": "SmolLM2-135M"}[row["model"]],
            f"`{row['run'].replace(' ', '`, `')}`",
            f"{row['planned_gb']:.2f} GB",
            f"{row['measured_gb']:.2f} GB",
        ]
        for row in report["rows"]
    ]
    return table(["model", "format and settings", "planned", "measured"], rows, 2)


def servers() -> str:
    """Return which writer takes which format, as the writers themselves say."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    rows = []
    for short in EXPORTED:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).half().float()
        scheme, once = pvopt.parse_scheme(short), pvopt.FitOptions(iterations=1)
        fitted = pvopt.quantize_(model, {"*.down_proj": scheme}, options=once)
        takes = [_takes(WRITERS.writer(name), model, fitted) for name in SERVERS]
        name = "trellis as EXL3 has it" if short == _EXL3 else f"`{short}`"
        rows.append([name, *("yes" if taken else "" for taken in takes)])
    heads = ["format", *(f"`{name}`: {servers}" for name, servers in SERVERS.items())]
    return table(heads, rows)


def _takes(writer: Writer, model: Any, fitted: pvopt.QuantizedWeights) -> bool:
    """Tell whether a writer takes weights, as ``pvopt export --dtype float16`` would give them."""
    prepared = {name: writer.prepared(rep) for name, rep in fitted.items()}
    halves = {n: r.to(dtype=torch.float16).to(dtype=torch.float32) for n, r in prepared.items()}
    weights = pvopt.QuantizedWeights(model, halves)
    weights.write_()
    return writer.can_write(Checkpoint(model, weights)) is None


def forms() -> str:
    """Return the short names of parametrizations and spaces."""
    text = ""
    for title, registry in (("parametrization", PARAMETRIZATIONS), ("space", SPACES)):
        rows = [
            [f"`{form.form}`", form.meaning, ", ".join(f"`{e}`" for e in form.example.split(", "))]
            for form in registry.forms
        ]
        text += table([title, "meaning", "example"], rows) + "\n"
    return text


TABLES: dict[str, Callable[[], str]] = {
    "best": lambda: frontier(read("frontier"), _BEST),
    "frontier": lambda: frontier(read("frontier")),
    "recipes": lambda: recipes(read("recipes")),
    "llm_tune": lambda: llm_tune(read("llm_tune")),
    "plan": lambda: plan(read("plan")),
    "servers": servers,
    "forms": forms,
}


def _generate(app: Any) -> None:
    logging.getLogger("pvopt").setLevel(logging.WARNING)  # not what each layer was quantized to
    for name, make in TABLES.items():
        write(Path(app.srcdir) / "generated" / f"{name}.md", make())


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _generate)
    return {"parallel_read_safe": True}
