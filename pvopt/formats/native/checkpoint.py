"""Our own format: a folder with packed codes, values and the other weights of a model."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pvopt.parametrizations import Parametrization
from pvopt.weights import QuantizedWeights

from pvopt.formats.errors import CheckpointError
from .folders import complete_folder, replaced_folder
from .manifest import MANIFEST, FileEntry, Manifest, WeightEntry
from .tensors import collect, targets, unpacked
from .transformers_files import rebuild_model, write_transformers_files

__all__ = ["Checkpoint", "load", "load_training_state", "read_metadata", "save"]

_TENSORS = "model.safetensors"
_TRAINING = "training_state.pt"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    Args:
        model: the model, its quantized weights decoded.
        weights: the representations, bound to the model.
        metadata: what the writer kept.
    """

    model: nn.Module
    weights: QuantizedWeights
    metadata: dict[str, Any]


def save(
    folder: str | Path,
    model: nn.Module,
    weights: QuantizedWeights,
    *,
    tokenizer: Any = None,
    metadata: Mapping[str, Any] | None = None,
    training_state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model and its representations, losslessly, in the place of an older checkpoint.

    The folder holds ``model.safetensors`` (codes packed at their real width, values, all other
    weights; no dense copy of a quantized weight), ``pvopt.json`` and, for models of transformers,
    the configuration and tokenizer. It is complete on the disk before it replaces an older one:
    a reader finds either, whenever the writer is killed.

    Args:
        folder: where to; replaced if it is a checkpoint, refused if it is anything else.
        model: the module that ``weights`` belongs to.
        weights: the representations.
        tokenizer: a transformers tokenizer to keep with the model, or None.
        metadata: primitives, lists and dictionaries to keep.
        training_state: tensors and primitives for resuming (the optimizer's state dict, the
            step), or None. Codes and values in it are stored once more.

    Returns:
        The folder.

    Raises:
        CheckpointError: if the folder is in use for something else, or something cannot be stored.

    Example:
        >>> import tempfile, pvopt
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
        >>> _ = save(folder, model, weights, metadata={"step": 3})
        >>> loaded = load(folder, nn.Linear(8, 4))
        >>> loaded.metadata, torch.equal(loaded.model.weight, model.weight)
        ({'step': 3}, True)
    """
    tensors, tied = collect(model, weights)
    entries = {
        name: WeightEntry(
            rep.parametrization, rep.shape, weights.parameter(name).dtype, rep.codes.dtype
        )
        for name, rep in weights.items()
    }
    with replaced_folder(folder, MANIFEST) as new:
        save_file(tensors, str(new / _TENSORS))
        if training_state is not None:
            torch.save(dict(training_state), new / _TRAINING)
        files = {f.name: FileEntry.of(f) for f in (new / _TENSORS, new / _TRAINING) if f.exists()}
        write_transformers_files(new, model, tokenizer)
        Manifest(type(model).__name__, entries, tied, files, metadata or {}).write(new)
        shutil.copymode(new / MANIFEST, new / _TENSORS)  # safetensors lets the owner alone read
    return Path(folder)


def load(
    folder: str | Path,
    model: nn.Module | None = None,
    *,
    parametrizations: Iterable[type[Parametrization]] = (),
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        folder: as given to :func:`save`.
        model: module of the saved structure to fill in place, keeping its dtypes and devices; None
            rebuilds a causal language model of transformers on the CPU, with the saved dtypes.
        parametrizations: classes that may occur besides those of :mod:`pvopt.parametrizations`.

    Returns:
        Model, representations and metadata.

    Raises:
        CheckpointError: if a file is missing, truncated, damaged or foreign, or does not fit the
            model; the model is unchanged then.

    Example:
        >>> import tempfile, pvopt
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.SharedValues(num_values=4))
        >>> loaded = load(save(folder, model, weights), nn.Linear(8, 4))
        >>> torch.equal(loaded.weights["weight"].codes, weights["weight"].codes)
        True
    """
    path = complete_folder(folder)
    manifest = Manifest.read(path, parametrizations)
    file = manifest.verify(path, _TENSORS)
    try:
        with safe_open(str(file), framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file}: is no safetensors file ({error})") from error
    representations = {n: unpacked(file, n, e, tensors) for n, e in manifest.weights.items()}
    keep_dtypes = model is not None
    if model is None:
        floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
        dtypes = [entry.dtype for entry in manifest.weights.values()] + floating
        model = rebuild_model(path, dtypes[0] if dtypes else torch.float32)
    to_fill = targets(file, model, tensors, manifest)
    # No failure is expected from here on: the model is changed as a whole or not at all.
    dtypes = {name: entry.dtype for name, entry in manifest.weights.items()}
    dtypes |= {name: tensor.dtype for name, tensor in tensors.items()}
    with torch.no_grad():
        for name, target in to_fill.items():
            if not keep_dtypes and target.dtype != dtypes[name]:
                target.data = target.data.to(dtypes[name])
            if name in tensors:
                target.copy_(tensors[name])
            else:
                representations[name] = representations[name].to(target.device)
    weights = QuantizedWeights(model, representations)
    weights.write_()
    return Checkpoint(model, weights, dict(manifest.metadata))


def load_training_state(folder: str | Path) -> dict[str, Any]:
    """Read the training state of a checkpoint, tensors and primitives only.

    Args:
        folder: as given to :func:`save`.

    Returns:
        What was given to :func:`save`, on the CPU.

    Raises:
        CheckpointError: if there is none, or the file is damaged.

    Example:
        >>> import tempfile, pvopt
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.SharedValues(num_values=4))
        >>> load_training_state(save(folder, model, weights, training_state={"step": 7}))
        {'step': 7}
    """
    path = complete_folder(folder)
    manifest = Manifest.read(path)
    if _TRAINING not in manifest.files:
        raise CheckpointError(f"{path}: holds no training state, so it cannot be resumed")
    file = manifest.verify(path, _TRAINING)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Read the metadata of a checkpoint, without any tensor.

    Args:
        folder: as given to :func:`save`.

    Returns:
        What was given to :func:`save`.

    Raises:
        CheckpointError: if the folder is no checkpoint.

    Example:
        >>> import tempfile, pvopt
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.SharedValues(num_values=4))
        >>> read_metadata(save(folder, model, weights, metadata={"text": "pydoc"}))
        {'text': 'pydoc'}
    """
    return dict(Manifest.read(complete_folder(folder)).metadata)
