"""Starting and resuming runs from names: a model, a format, a text, a folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvopt.core.heap import release_free_memory
from pvopt.formats import CheckpointError, load, load_tokenizer, load_training_state
from pvopt.llm import (
    LanguageModel,
    TextPart,
    TokenBatches,
    check_length,
    load_model,
    load_text,
    output_head,
    stable_source,
)
from pvopt.parametrizations.scheme import parse_scheme
from pvopt.quantization import quantize_
from pvopt.weights import QuantizedWeights

from .optimizers import check_fits
from .run_folders import check_run_folder, delete_run, find_checkpoint
from .settings import TuneSettings, computing_dtype, setting
from .trainer import Trainer

__all__ = ["Inputs", "load_student", "resume_run", "start_run"]

Progress = Callable[[list[str]], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run starts from, by names (see :func:`pvopt.llm.load_model`, ``load_text``)."""

    model: str = setting(..., "full precision: folder, GGUF file, hub id, smollm2 or tiny-llama")
    text: str = setting("pydoc", "text to tune on: file, hub:NAME or pydoc")
    eval_text: str | None = setting(
        None, "text to evaluate on; default: the last tenth of --text, held out"
    )
    format: str = setting("2x8g8", "what weights are quantized to, a form below")
    checkpoint: str | None = setting(
        None, "quantized model to start from, in place of --format (with --model: another original)"
    )


def load_student(
    folder: str | Path, *, device: torch.device | str = "cpu"
) -> tuple[LanguageModel, QuantizedWeights, dict[str, Any]]:
    """Load a quantized language model with its tokenizer.

    Args:
        folder: of a checkpoint or of a run.
        device: where model, codes and values go.

    Returns:
        The model, its quantized weights, the checkpoint's metadata.

    Raises:
        CheckpointError: if it cannot be read.

    Example:
        >>> import tempfile
        >>> from pvopt.tuning import Inputs, TuneSettings, load_student, start_run
        >>> inputs = Inputs(model="tiny-llama", format="grid:2g16")
        >>> settings = TuneSettings(steps=2, batch=2, length=16, eval_windows=1)
        >>> trainer = start_run(inputs, settings, tempfile.mkdtemp())
        >>> trainer.run()
        >>> student, weights, metadata = load_student(trainer.folder)
        >>> len(weights), metadata["step"]
        (14, 2)
    """
    folder = find_checkpoint(folder)
    loaded = load(folder)
    model: Any = loaded.model.to(device)
    weights = loaded.weights
    if torch.device(device).type != "cpu":
        weights = QuantizedWeights(model, {n: rep.to(device) for n, rep in weights.items()})
    student = LanguageModel(model, load_tokenizer(folder), str(folder))
    return student, weights, dict(loaded.metadata)


def start_run(
    inputs: Inputs,
    settings: TuneSettings,
    folder: str | Path,
    *,
    overwrite: bool = False,
    resumable: bool = True,
    progress: Progress | None = None,
) -> Trainer:
    """Prepare a new run: load or quantize the student, load teacher and texts.

    Args:
        inputs: what to start from.
        settings: how to tune.
        folder: where results go.
        overwrite: whether a run that is there already may be deleted.
        resumable: whether checkpoints shall hold the optimizer's state.
        progress: wraps the names of the weights to quantize, for instance ``tqdm.tqdm``.

    Returns:
        A trainer at step 0. Values that a checkpoint holds in half precision are tuned in single
        precision, in which a step is not rounded away.

    Raises:
        ValueError: if an input cannot be found, settings do not fit it, or the folder holds a run
            already.

    Example:
        >>> import tempfile
        >>> from pvopt.tuning import Inputs, TuneSettings, start_run
        >>> inputs = Inputs(model="tiny-llama", format="grid:2g16")
        >>> settings = TuneSettings(steps=2, batch=2, length=16, eval_windows=1)
        >>> trainer = start_run(inputs, settings, tempfile.mkdtemp())
        >>> trainer.run()
        >>> trainer.step
        2
    """
    folder = Path(folder)
    inputs = _stable(inputs)
    seen: list[dict[str, str]] = []
    commands: list[str] = []
    check_run_folder(folder, overwrite=overwrite, checkpoint=inputs.checkpoint)
    if inputs.checkpoint is None:
        scheme = parse_scheme(inputs.format)
        check_fits(settings, scheme.parametrization)
        teacher = load_model(inputs.model, device=settings.device)
        output_head(teacher.model)  # refuses models whose loss cannot be computed, before any work
        batches, held_out = _texts(inputs, settings, teacher)
        student = replace(teacher, model=copy.deepcopy(teacher.model))
        weights = quantize_(student.model, scheme, seed=settings.seed, progress=progress)
    else:
        student, stored, found = load_student(inputs.checkpoint, device=settings.device)
        weights = _in_single_precision(student.model, stored)
        seen, commands = TextPart.recorded(found), _commands(found)
        settings = replace(settings, dtype=computing_dtype(settings.dtype, student.model, found))
        for rep in weights.values():
            check_fits(settings, rep.parametrization)
        teacher = load_model(inputs.model, dtype=_dtype(student), device=settings.device)
        batches, held_out = _texts(inputs, settings, teacher)
    seen.append(_training_text(inputs).record("tuning"))
    metadata = {
        "model": inputs.model,
        "inputs": asdict(inputs),
        "seen": seen,
        "commands": commands,
    }
    trainer = Trainer(
        student,
        weights,
        teacher.model,
        batches,
        held_out,
        settings,
        folder,
        metadata,
        resumable=resumable,
    )
    if overwrite:  # nothing was deleted until everything else had succeeded
        delete_run(folder)
    return trainer


def resume_run(folder: str | Path, **changes: Any) -> Trainer:
    """Prepare a run to go on from its last checkpoint.

    Args:
        folder: of the run.
        changes: settings to replace. The result equals that of an uninterrupted run with the
            changed settings where these have not mattered before, such as ``steps`` with a
            constant learning rate.

    Returns:
        A trainer at the checkpoint's step.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged or not of a run.
        ValueError: if a change is out of range.

    Example:
        >>> import tempfile
        >>> from pvopt.tuning import Inputs, TuneSettings, resume_run, start_run
        >>> inputs = Inputs(model="tiny-llama", format="grid:2g16")
        >>> settings = TuneSettings(steps=2, batch=2, length=16, eval_windows=1)
        >>> trainer = start_run(inputs, settings, tempfile.mkdtemp())
        >>> trainer.run()
        >>> resumed = resume_run(trainer.folder, steps=3)
        >>> resumed.step
        2
    """
    checkpoint = Path(folder) / "checkpoint"
    student, weights, metadata = load_student(checkpoint)
    state = load_training_state(checkpoint)
    try:
        inputs = Inputs(**metadata["inputs"])
        known = {field.name for field in fields(TuneSettings)}
        saved = {name: value for name, value in state["settings"].items() if name in known}
        saved_settings = TuneSettings(**saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint}: was not written by a tuning run ({error})") from error
    settings = replace(saved_settings, **changes)
    if Path(inputs.model).is_absolute() and not Path(inputs.model).exists():
        raise CheckpointError(
            f"{checkpoint}: was tuned with the original {inputs.model}, which is not on this "
            "machine; put it there to go on"
        )
    if settings.device != "cpu":
        student, weights, _ = load_student(checkpoint, device=settings.device)
    teacher = load_model(inputs.model, dtype=_dtype(student), device=settings.device)
    batches, held_out = _texts(inputs, settings, teacher)
    metadata = {
        "model": inputs.model,
        "inputs": asdict(inputs),
        "seen": TextPart.recorded(metadata),
        "commands": _commands(metadata),
    }
    trainer = Trainer(
        student, weights, teacher.model, batches, held_out, settings, folder, metadata
    )
    try:
        trainer.restore(state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint}: its training state does not fit its model ({error})"
        ) from error
    return trainer


def _in_single_precision(model: Any, weights: QuantizedWeights) -> QuantizedWeights:
    """Return the weights with values in which steps are not rounded away, written."""
    dtypes = {name: torch.promote_types(rep.dtype, torch.float32) for name, rep in weights.items()}
    wide = {name: rep.to(dtype=dtypes[name]) for name, rep in weights.items()}
    found = QuantizedWeights(model, wide)
    found.write_()
    return found


def _texts(
    inputs: Inputs, settings: TuneSettings, model: LanguageModel
) -> tuple[TokenBatches, Tensor]:
    """Return the batches to tune on and the tokens to evaluate on; both are long enough."""
    check_length(model.model, "length", settings.length)
    check_length(model.model, "eval_length", settings.context_length)
    if inputs.eval_text is not None:
        held_out = load_text(inputs.eval_text)
    else:
        held_out = TextPart.load(inputs.text, "held-out").text
    batches = TokenBatches(
        model.encode(_training_text(inputs).text),
        settings.batch,
        settings.length,
        seed=settings.seed,
    )
    tokens = model.encode(held_out)
    if len(tokens) < settings.context_length:
        raise ValueError(
            f"the text to evaluate on has {len(tokens)} tokens, less than one window of "
            f"{settings.context_length}: take a longer one or a smaller eval_length"
        )
    release_free_memory()  # a tokenizer leaves several times the text behind
    return batches, tokens


def _commands(metadata: Mapping[str, Any]) -> list[str]:
    found = metadata.get("commands")
    return [str(line) for line in found] if isinstance(found, list) else []


def _training_text(inputs: Inputs) -> TextPart:
    return TextPart.load(inputs.text, "train" if inputs.eval_text is None else "all")


def _stable(inputs: Inputs) -> Inputs:
    """Name models, texts and checkpoints so that a run can be resumed from any folder."""
    names = {
        field.name: stable_source(value)
        for field in fields(Inputs)
        if field.name != "format" and (value := getattr(inputs, field.name)) is not None
    }
    return replace(inputs, **names)


def _dtype(model: LanguageModel) -> torch.dtype:
    return next(p.dtype for p in model.model.parameters() if p.is_floating_point())
