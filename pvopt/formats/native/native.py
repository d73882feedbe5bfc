"""Our own format: a folder with packed codes, values and the other weights of a model."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.core.byte_sizes import parse_bytes
from pvopt.formats.contract import FORMATS, Checkpoint, Reader, Writer
from pvopt.formats.errors import CheckpointError
from pvopt.formats.folders import one_generation, read_complete
from pvopt.formats.shards import INDEX, SHARD_BYTES, holds_tensors, write_shards
from pvopt.formats.transformers_files import (
    is_language_model,
    model_skeleton,
    rebuild_model,
    write_transformers_files,
)
from pvopt.weights import QuantizedWeights

from .manifest import MANIFEST, Manifest, WeightEntry, files_of
from .tensors import (
    checked_tensors,
    packed,
    part_names,
    tensors_place,
    unpacked,
)
from .training_state import STATE, STATE_TENSORS, read_state, write_state

__all__ = ["Native", "load_training_state"]

# What systems leave in folders: a lock, a Finder's view, a file that is open elsewhere.
_NOBODYS = (".lock", ".DS_Store", ".nfs")


@FORMATS.register
class Native(Reader, Writer):
    """Folders with ``pvopt.json``, for any parametrization and space that is registered.

    Args:
        shard_bytes: the most that one file of tensors takes, unless one tensor alone is larger.
            Models that take more are written as ``model-00001-of-0000N.safetensors`` with an index.
            As a setting: ``native:2GB``.

    Raises:
        ValueError: if it is not positive.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.native import Native
        >>> Native().match(Path(tempfile.mkdtemp()))
        False
        >>> Native().with_settings("2GB").shard_bytes
        2000000000
    """

    name = "native"
    marker = MANIFEST
    usage = 'python -m pvopt generate --checkpoint {folder} --prompt "Once upon"'

    def __init__(self, shard_bytes: int = SHARD_BYTES) -> None:
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
        self.shard_bytes = shard_bytes

    def with_settings(self, text: str) -> Native:
        return Native(int(parse_bytes(text, "the size of files in the format native")))

    def match(self, folder: Path) -> bool:
        return os.path.lexists(folder / MANIFEST)  # what is no file is refused on reading

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        for name, rep in checkpoint.weights.items():
            try:
                rep.scheme.to_json()
            except ValueError as error:
                return f"{name!r}: {error}"
        return None

    def foreign(self, folder: Path) -> Collection[str]:
        try:
            known = {MANIFEST, *(name.split("/")[0] for name in Manifest.read(folder).files)}
        except CheckpointError:  # of an older version or damaged: files may go, folders may not
            known = {entry.name for entry in folder.iterdir() if not entry.is_dir()}
        return [
            entry.name
            for entry in folder.iterdir()
            if entry.name not in known and not entry.name.startswith(_NOBODYS)
        ]

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        model, weights = checkpoint.model, checkpoint.weights
        entries = {n: WeightEntry.of(n, r, weights.parameter(n).dtype) for n, r in weights.items()}
        tensors, tied = _other_tensors(model, weights)
        for name, rep in weights.items():
            tensors |= packed(name, rep)
        if is_language_model(model):
            tensors |= {name: torch.empty(0, dtype=torch.uint8) for name in weights}
        write_shards(folder, tensors, most_bytes=self.shard_bytes)
        if checkpoint.training_state is not None:
            write_state(folder, checkpoint.training_state)
        write_transformers_files(folder, model, checkpoint.tokenizer)
        kind = type(model).__name__
        Manifest(kind, entries, tied, files_of(folder), checkpoint.metadata).write(folder)

    @contextmanager
    def transformers_files(self, folder: Path) -> Iterator[Path]:
        # Copies of what was checked: no other file is looked at, whatever else is in the folder.
        with one_generation(folder), TemporaryDirectory() as scratch:
            manifest = Manifest.read(folder)
            for name in manifest.files.keys() - {INDEX, STATE, STATE_TENSORS}:
                if holds_tensors(name):
                    continue
                copy = Path(scratch, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(manifest.read_verified(folder, name))
            try:
                yield Path(scratch)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(scratch, str(folder))) from error

    def metadata(self, folder: Path) -> dict[str, Any]:
        return dict(Manifest.read(folder).metadata)

    def read(self, folder: Path, model: nn.Module | None) -> Checkpoint:
        keep_dtypes = model is not None
        with one_generation(folder):
            manifest = Manifest.read(folder)
            file, stored = checked_tensors(folder, manifest)
            others = _not_quantized(file, manifest, stored)
            if model is None:
                model = self._rebuilt(folder, manifest, others)
            targets = _targets(file, model, manifest, others)
            reps = {n: unpacked(file, n, e, stored) for n, e in manifest.weights.items()}
        dtypes = {name: entry.dtype for name, entry in manifest.weights.items()}
        dtypes |= {name: tensor.dtype for name, tensor in others.items()}
        # No failure is expected from here on: the model is changed as a whole or not at all.
        with torch.no_grad():
            for name, target in targets.items():
                if not keep_dtypes and target.dtype != dtypes[name]:
                    target.data = target.data.to(dtypes[name])
                if name in others:
                    target.copy_(others[name])
                else:
                    reps[name] = reps[name].to(target.device)
        weights = QuantizedWeights(model, reps)
        weights.write_()
        return Checkpoint(model, weights, dict(manifest.metadata))

    def _rebuilt(self, folder: Path, manifest: Manifest, others: Mapping[str, Tensor]) -> nn.Module:
        """Return the model of the folder; its shapes are compared before it takes any memory."""
        kinds = [*(e.dtype for e in manifest.weights.values()), *(t.dtype for t in others.values())]
        floating = [dtype for dtype in kinds if dtype.is_floating_point]
        with self.transformers_files(folder) as files:
            skeleton = model_skeleton(files, len(manifest.weights) + len(others))
            _targets(tensors_place(folder, manifest), skeleton, manifest, others)
            return rebuild_model(files, floating[0] if floating else torch.float32)


def _not_quantized(
    file: Path, manifest: Manifest, stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the stored tensors that belong to no quantized weight."""
    parts = {
        p for name, entry in manifest.weights.items() for p in part_names(name, entry).values()
    }
    others = {name: tensor for name, tensor in stored.items() if name not in parts}
    for name in manifest.weights.keys() & others.keys():
        if others.pop(name).numel():
            raise CheckpointError(f"{file}: holds {name} twice, quantized and dense")
    return others


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
    file: Path, model: nn.Module, manifest: Manifest, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the model's tensors to fill by name; check that names, shapes and kinds agree."""
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
        floating = name not in tensors or tensors[name].is_floating_point()
        if floating != value.is_floating_point():
            raise CheckpointError(f"{file}: {name} must be {value.dtype} as in the model")
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
        >>> import tempfile
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.formats import load_training_state, save
        >>> folder, model = tempfile.mkdtemp(), nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.SharedValues(num_values=4))
        >>> load_training_state(save(folder, model, weights, training_state={"step": 7}))
        {'step': 7}
    """

    def read(path: Path) -> dict[str, Any]:
        with one_generation(path):
            manifest = Manifest.read(path)
            if STATE not in manifest.files:
                raise CheckpointError(f"{path}: holds no training state, so it cannot be resumed")
            return read_state(path, manifest)

    return read_complete(folder, read)
