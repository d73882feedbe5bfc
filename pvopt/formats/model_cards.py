"""Model cards: what a model is made of, how, how good it is and how to load it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .card_files import sealed_card
from .contract import Checkpoint, Writer
from .transformers_files import is_language_model

__all__ = ["model_card"]

# Names that are neither folders nor ids of the hub, and where the hub has the same model.
_KNOWN = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "tiny-llama": None}
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# What loads a folder, by its format; transformers where it is not said.
_LIBRARIES = {"gguf": "gguf", "exl3": "exllamav3"}
_MODELS = {"teacher": "original", "student": "quantized"}
_SETTINGS = ("recipe", "steps", "batch", "length", "loss", "base", "code_lr", "values_lr", "lr")


def model_card(checkpoint: Checkpoint, writer: Writer, folder: str | Path) -> str:
    """Return the text of ``README.md``: YAML that model hubs read, then Markdown.

    Args:
        checkpoint: the model. Of its metadata, ``model`` names the original, ``commands`` are
            command lines, ``evaluations`` records of a run, ``settings`` and ``inputs`` say how it
            was tuned and ``calibration`` how it was started; what is missing is left out.
        writer: of the format.
        folder: the place, as users name it.

    Raises:
        ImportError: without huggingface_hub.

    Example:
        >>> import torch
        >>> import pvopt
        >>> from pvopt.formats import FORMATS, Checkpoint
        >>> from pvopt.formats.model_cards import model_card
        >>> model = torch.nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
        >>> card = model_card(Checkpoint(model, weights), FORMATS.writer("native"), "tuned")
        >>> "| codes alone | 2.00 |" in card
        True
    """
    metadata = checkpoint.metadata
    parts = [
        _introduction(checkpoint),
        _loading(checkpoint, writer, folder),
        _size(checkpoint),
        _quality(metadata),
        _making(metadata),
        _quantized(checkpoint),
    ]
    return sealed_card(_front_matter(checkpoint, writer), "\n".join(filter(None, ["", *parts])))


def _front_matter(checkpoint: Checkpoint, writer: Writer) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    bits = round(checkpoint.weights.bits_per_weight(value_bits=0))
    data: dict[str, Any] = {"tags": ["pvopt", "quantized", f"{bits}-bit", writer.name]}
    base = _hub_id(checkpoint.metadata.get("model"))
    if base is not None:
        data |= {"base_model": base, "base_model_relation": "quantized"}
    if is_language_model(checkpoint.model):
        library = _LIBRARIES.get(writer.name, "transformers")
        data |= {"pipeline_tag": "text-generation", "library_name": library}
    tuned = [e for e in _evaluations(checkpoint.metadata) if e["model"] == "student"]
    if tuned and _is_number(tuned[-1].get("perplexity")):
        result = EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=_evaluated_text(checkpoint.metadata),
            metric_type="perplexity",
            metric_name=f"perplexity, {tuned[-1].get('context_length')} tokens of context",
            metric_value=float(f"{tuned[-1]['perplexity']:.6g}"),
        )
        data |= {"eval_results": [result], "model_name": _title(checkpoint)}
    return f"---\n{ModelCardData(**data).to_yaml().strip()}\n---\n"


def _introduction(checkpoint: Checkpoint) -> str:
    shown = ", ".join(f"`{name}`" for name in _formats(checkpoint))
    return (
        f"# {_title(checkpoint)}\n\n{len(checkpoint.weights)} weights are quantized to {shown} by "
        f"pvopt {version('pvopt')}.\n"
    )


def _loading(checkpoint: Checkpoint, writer: Writer, folder: str | Path) -> str:
    name = Path(folder).name or folder
    line = writer.loading(name)
    if not is_language_model(checkpoint.model):
        line = f'pvopt.formats.load("{name}", model)'
    return f"## Loading\n\n```\n{line}\n```\n" if line else ""


def _size(checkpoint: Checkpoint) -> str:
    coverage = checkpoint.weights.coverage()
    rows = [
        ["codes alone", checkpoint.weights.bits_per_weight(value_bits=0)],
        [
            "with codebooks and scales, in 16 bits",
            checkpoint.weights.bits_per_weight(value_bits=16),
        ],
        ["with codebooks and scales, as they were tuned", coverage.bits_per_weight],
        ["all parameters of the model, as they were tuned", coverage.bits_per_parameter],
    ]
    shown = [[name, f"{bits:.2f}"] for name, bits in rows]
    return "## Size\n\n" + _table(["what is counted", "bits per weight"], shown)


def _quality(metadata: Mapping[str, Any]) -> str:
    evaluations = _evaluations(metadata)
    if not evaluations:
        return ""
    rows = [
        [
            _MODELS.get(e["model"], _cell(e["model"])),
            _cell(e.get("step")),
            *(_number(e.get(key)) for key in ("perplexity", "nll_per_token", "divergence")),
        ]
        for e in evaluations
    ]
    header = ["model", "step", "perplexity", "nats per token", "divergence from the original"]
    last = evaluations[-1]
    return (
        f"## Quality\n\n{_table(header, rows)}\n"
        f"On {_evaluated_text(metadata)}: {_cell(last.get('windows'))} windows of "
        f"{_cell(last.get('context_length'))} tokens, computed in {_cell(last.get('dtype'))}.\n"
    )


def _making(metadata: Mapping[str, Any]) -> str:
    parts = []
    commands = metadata.get("commands")
    if isinstance(commands, list) and commands:
        lines = "".join(f"{' '.join(str(line).splitlines())}\n" for line in commands)
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`*", lines)))
        parts.append(f"{fence}sh\n{lines}{fence}\n")
    for title, key, picked in (
        ("Tuned", "settings", _SETTINGS),
        ("Calibrated", "calibration", None),
    ):
        found = metadata.get(key)
        if isinstance(found, Mapping):
            shown = [f"{k} {found[k]}" for k in picked or found if k in found]
            parts.append(f"{title}: {_cell(', '.join(shown))}.\n")
    return "## How it was made\n\n" + "\n".join(parts) if parts else ""


def _quantized(checkpoint: Checkpoint) -> str:
    coverage = checkpoint.weights.coverage()
    rows = [
        [f"`{name}`", str(len(weights)), f"`{weights[0]}`" + " ..." * (len(weights) > 1)]
        for name, weights in _formats(checkpoint).items()
    ]
    text = "## What is quantized\n\n" + _table(["format", "weights", "which"], rows)
    text += f"\n{coverage.share:.1%} of the weights of all matrices."
    if coverage.dense:
        shown = ", ".join(f"`{w.name}` ({w.reason})" for w in coverage.dense[:5])
        text += f" Left as they were: {shown}{', ...' * (len(coverage.dense) > 5)}."
    return text + "\n"


def _formats(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the names of weights by the short name of their format."""
    found: dict[str, list[str]] = {}
    for name, rep in checkpoint.weights.items():
        found.setdefault(_cell(rep.scheme.name), []).append(name)
    return found


def _title(checkpoint: Checkpoint) -> str:
    model = checkpoint.metadata.get("model")
    name = model if isinstance(model, str) else type(checkpoint.model).__name__
    name = Path(name).name if Path(name).is_absolute() else name
    bits = checkpoint.weights.bits_per_weight(value_bits=16)
    return f"{_cell(name)}, {bits:.2f} bits per weight"


def _hub_id(model: Any) -> str | None:
    """Return the id of a model on the hub; None for a folder."""
    if not isinstance(model, str) or not _HUB_ID.fullmatch(model):
        return None
    return _KNOWN.get(model, model)


def _evaluated_text(metadata: Mapping[str, Any]) -> str:
    inputs = metadata.get("inputs")
    if not isinstance(inputs, Mapping):
        return "a text"
    own = inputs.get("eval_text")
    name = _cell(Path(str(own or inputs.get("text"))).name)
    return name if own else f"the held-out tenth of {name}"


def _evaluations(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = metadata.get("evaluations")
    records = found if isinstance(found, list) else []
    return [e for e in records if isinstance(e, Mapping) and isinstance(e.get("model"), str)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any) -> str:
    return f"{value:.5g}" if _is_number(value) else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    """Return text that stays in its cell of a table and opens no element of HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
