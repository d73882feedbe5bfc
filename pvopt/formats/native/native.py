"""Our own format: a folder with packed codes, values and the other weights of a model."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.formats.contract import FORMATS, Checkpoint, Reader, Writer
from pvopt.formats.errors import CheckpointError
from pvopt.formats.folders import complete_folder
from pvopt.formats.transformers_files import rebuild_model, write_transformers_files
from pvopt.weights import QuantizedWeights

from .manifest import MANIFEST, FileEntry, Manifest, WeightEntry
from .tensors import TENSORS, packed, read_tensors, unpacked, write_tensors

__all__ = ["Native", "load_training_state", "read_metadata"]

_TRAINING = "training_state.pt"


@FORMATS.register
class Native(Reader, Writer):
    """Folders with ``pvopt.json``, for any parametrization and space that is registered.

    Example:
        >>> import tempfile
        >>> Native().match(Path(tempfile.mkdtemp()))
        False
    """

    name = "native"
    marker = MANIFEST

    def match(self, folder: Path) -> bool:
        return (folder / MANIFEST).is_file()

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        for name, rep in checkpoint.weights.items():
            try:
                rep.scheme.to_json()
            except ValueError as error:
                return f"{name!r}: {error}"
        return None

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        model, weights = checkpoint.model, checkpoint.weights
        entries = {n: WeightEntry.of(n, r, weights.parameter(n).dtype) for n, r in weights.items()}
        tensors, tied = _other_tensors(model, weights)
        for name, rep in weights.items():
            tensors |= packed(name, rep)
        files = [write_tensors(folder, tensors)]
        if checkpoint.training_state is not None:
            files.append(folder / _TRAINING)
            torch.save(dict(checkpoint.training_state), files[-1])
        described = {file.name: FileEntry.of(file) for file in files}
        write_transformers_files(folder, model, checkpoint.tokenizer)
        kind = type(model).__name__
        Manifest(kind, entries, tied, described, checkpoint.metadata).write(folder)

    def read(self, folder: Path, model: nn.Module | None) -> Checkpoint:
        manifest = Manifest.read(folder)
        file = manifest.verify(folder, TENSORS)
        tensors = read_tensors(file)
        representations = {n: unpacked(file, n, e, tensors) for n, e in manifest.weights.items()}
        # What is left are the weights that are not quantized.
        dtypes = {name: entry.dtype for name, entry in manifest.weights.items()}
        dtypes |= {name: tensor.dtype for name, tensor in tensors.items()}
        keep_dtypes = model is not None
        if model is None:
            floating = [dtype for dtype in dtypes.values() if dtype.is_floating_point]
            model = rebuild_model(folder, floating[0] if floating else torch.float32)
        targets = _targets(file, model, manifest, tensors)
        # No failure is expected from here on: the model is changed as a whole or not at all.
        with torch.no_grad():
            for name, target in targets.items():
                if not keep_dtypes and target.dtype != dtypes[name]:
                    target.data = target.data.to(dtypes[name])
                if name in tensors:
                    target.copy_(tensors[name])
                else:
                    representations[name] = representations[name].to(target.device)
        weights = QuantizedWeights(model, representations)
        weights.write_()
        return Checkpoint(model, weights, dict(manifest.metadata))


def _other_tensors(
    model: nn.Module, weights: QuantizedWeights
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that are not quantized, and the names that are tied to others."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    memories: set[int] = set()
    first: dict[int, str] = {id(weights.parameter(name)): name for name in weights}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name}: only tensors can be saved, got {type(value).__name__}")
        if name in weights:
            continue
        owner = first.setdefault(id(value), name)
        if owner != name:
            tied[name] = owner
            continue
        # A copy where the memory is shared with another tensor: the format has no views.
        value = value.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if memory in memories else value
        memories.add(memory)
    return tensors, tied


def _targets(
    file: Path, model: nn.Module, manifest: Manifest, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the model's tensors to fill by name; check that names and shapes agree."""
    state = model.state_dict(keep_vars=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes |= {name: entry.shape for name, entry in manifest.weights.items()}
    wanted = {name: value for name, value in state.items() if name not in manifest.tied}
    for what, names in (
        ("no weights for", wanted.keys() - shapes.keys()),
        ("weights unknown to the model:", shapes.keys() - wanted.keys()),
    ):
        if names:
            shown = sorted(names)[:5] + ["..."] * (len(names) > 5)
            raise CheckpointError(f"{file}: holds {what} {', '.join(shown)}")
    for name, value in wanted.items():
        if tuple(value.shape) != shapes[name]:
            raise CheckpointError(
                f"{file}: {name} has shape {list(shapes[name])}, "
                f"the model's has {list(value.shape)}"
            )
    for name, owner in manifest.tied.items():
        if name not in state or owner not in state or state[name] is not state[owner]:
            raise CheckpointError(f"{file}: {name} is tied to {owner}, in the model it is not")
    return wanted


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
        >>> from pvopt.formats import save
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
        >>> from pvopt.formats import save
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.SharedValues(num_values=4))
        >>> read_metadata(save(folder, model, weights, metadata={"text": "pydoc"}))
        {'text': 'pydoc'}
    """
    return dict(Manifest.read(complete_folder(folder)).metadata)
