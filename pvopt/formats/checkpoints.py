"""The one public way to save and load models, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from pvopt.engine.agreement import check_decoded
from pvopt.weights import QuantizedWeights

from .card_files import CARD, edited_card
from .contract import FORMATS, Checkpoint, Writer
from .errors import CheckpointError
from .folders import read_complete, replaced_folder
from .model_cards import model_card
from .places import check_replaceable
from .transformers_files import read_tokenizer

__all__ = ["check_place", "load", "load_tokenizer", "read_metadata", "save"]

Result = TypeVar("Result")


def save(
    folder: str | Path,
    model: nn.Module,
    weights: QuantizedWeights,
    *,
    format: str = "native",
    tokenizer: Any = None,
    metadata: Mapping[str, Any] | None = None,
    training_state: Mapping[str, Any] | None = None,
    card: bool = False,
) -> Path:
    """Write a model and its representations, losslessly, in the place of an older checkpoint.

    The folder is complete on the disk before it replaces an older one: a reader finds either,
    whenever the writer is killed. Of several writers one waits for the other.

    The native format holds ``model.safetensors`` (codes packed at their real width, values, all
    other weights; no dense copy of a quantized weight), ``pvopt.json`` with checksums of all files
    and, for models of transformers, the configuration and tokenizer. More than 5 GB of tensors are
    in several files, with the index that transformers writes; ``native:2GB`` asks for smaller ones.

    Args:
        folder: where to; replaced if it is a checkpoint, refused if it is or holds anything else.
        model: the module that ``weights`` belongs to.
        weights: the representations.
        format: name of a registered :class:`Writer`, with settings (``gguf:Q4_0``) if it has any.
        tokenizer: a transformers tokenizer to keep with the model, or None.
        metadata: primitives, lists and dictionaries to keep.
        training_state: tensors and primitives for resuming (the optimizer's state dict, the
            step), or None. Codes and values in it are stored once more.
        card: whether to write a model card, ``README.md``, with what the metadata tell: ``model``,
            ``commands``, ``evaluations``. A card that was edited since stays in the folder as it
            is, whatever is asked for.

    Returns:
        The folder.

    Raises:
        CheckpointError: if the folder is in use for something else, something cannot be stored in
            the format, or the disk is full; an older checkpoint is still there then.
        ValueError: if the format is unknown.
        WeightsChangedError: if the model holds other weights than codes and values decode to.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.formats import load, save
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
        >>> _ = save(folder, model, weights, metadata={"step": 3})
        >>> loaded = load(folder, nn.Linear(8, 4))
        >>> loaded.metadata, torch.equal(loaded.model.weight, model.weight)
        ({'step': 3}, True)
    """
    writer = FORMATS.writer(format)
    check_decoded((name, model.get_parameter(name), rep) for name, rep in weights.items())
    checkpoint = Checkpoint(model, weights, metadata or {}, tokenizer, training_state)
    reason = writer.can_write(checkpoint)
    if reason is not None:
        raise CheckpointError(f"{folder}: cannot be written in the format {format!r}: {reason}")
    text = model_card(checkpoint, writer, folder) if card else None

    with replaced_folder(folder, writer.marker, _foreign(writer)) as new:
        writer.write(new, checkpoint)
        kept = edited_card(Path(folder))
        if kept is not None or text is not None:
            (new / CARD).write_text(kept or text or "", encoding="utf-8")
    return Path(folder)


def check_place(folder: str | Path, format: str = "native") -> None:
    """Raise unless :func:`save` would write to a folder: to be asked before any work.

    Args:
        folder: the place.
        format: name of a registered :class:`Writer`, with settings if it has any.

    Raises:
        CheckpointError: if something else is in the place, or a folder cannot be made there.
        ValueError: if the format is unknown.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats import check_place
        >>> folder = Path(tempfile.mkdtemp())
        >>> check_place(folder)
        >>> (folder / "notes.txt").touch()
        >>> check_place(folder)
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...: exists and holds something else ...
    """
    writer = FORMATS.writer(format)
    check_replaceable(folder, writer.marker, _foreign(writer))


def _foreign(writer: Writer) -> Callable[[Path], list[str]]:
    """Return what tells the files of a folder that are not the writer's; cards may stay."""
    return lambda folder: [name for name in writer.foreign(folder) if name != CARD]


def load(folder: str | Path, model: nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint of any format that is registered.

    Args:
        folder: as given to :func:`save`, or a single file (``.gguf``).
        model: module of the saved structure to fill in place, keeping its dtypes and devices; None
            rebuilds a causal language model of transformers on the CPU, with the saved dtypes.

    Returns:
        Model, representations and metadata.

    Raises:
        CheckpointError: if a file is missing, truncated, damaged or foreign, or does not fit the
            model; the model is unchanged then.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.formats import load, save
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.SharedValues(num_values=4))
        >>> loaded = load(save(folder, model, weights), nn.Linear(8, 4))
        >>> torch.equal(loaded.weights["weight"].decode(), weights["weight"].decode())
        True
    """
    return _read(folder, lambda path: FORMATS.reader(path).read(path, model))


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer that was saved with a checkpoint.

    Args:
        folder: the checkpoint.

    Returns:
        A transformers tokenizer.

    Raises:
        CheckpointError: if there is none, or a file of it is damaged.
        ImportError: without transformers.

    Example:
        >>> import tempfile
        >>> from pvopt import SharedValues, quantize_
        >>> from pvopt.formats import load_tokenizer, save
        >>> from pvopt.llm import load_model
        >>> tiny, folder = load_model("tiny-llama"), tempfile.mkdtemp()
        >>> weights = quantize_(tiny.model, SharedValues(num_values=4))
        >>> _ = save(folder, tiny.model, weights, tokenizer=tiny.tokenizer)
        >>> load_tokenizer(folder).encode("Hi")
        [72, 105]
    """

    def read(path: Path) -> Any:
        with FORMATS.reader(path).transformers_files(path) as files:
            return read_tokenizer(files)

    return _read(folder, read)


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Read the metadata of a checkpoint, without any tensor.

    Args:
        folder: as given to :func:`save`.

    Returns:
        What was given to :func:`save`; nothing where the format keeps none.

    Raises:
        CheckpointError: if the folder is no checkpoint.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.formats import read_metadata, save
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.SharedValues(num_values=4))
        >>> read_metadata(save(folder, model, weights, metadata={"text": "pydoc"}))
        {'text': 'pydoc'}
    """
    return _read(folder, lambda path: FORMATS.reader(path).metadata(path))


def _read(path: str | Path, read: Callable[[Path], Result]) -> Result:
    """Read a folder, whole while others may replace it, or a single file."""
    if FORMATS.reads_file(Path(path)):
        return read(Path(path))
    return read_complete(path, read)
