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
from torch import Tensor, nn

from pvopt.parametrizations import Parametrization, Representation
from pvopt.quantize import QuantizedWeights

from .errors import CheckpointError
from .folders import complete_folder, replaced_folder
from .manifest import MANIFEST, FileEntry, Manifest, WeightEntry
from .packing import pack, unpack
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
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(2))
        >>> _ = save(folder, model, weights, metadata={"step": 3})
        >>> loaded = load(folder, nn.Linear(8, 4))
        >>> loaded.metadata, torch.equal(loaded.model.weight, model.weight)
        ({'step': 3}, True)
    """
    tensors, tied = _collect(model, weights)
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
    """
    path = complete_folder(folder)
    manifest = Manifest.read(path, parametrizations)
    file = manifest.verify(path, _TENSORS)
    try:
        with safe_open(str(file), framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file}: is no safetensors file ({error})") from error
    representations = {n: _unpacked(file, n, e, tensors) for n, e in manifest.weights.items()}
    keep_dtypes = model is not None
    if model is None:
        floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
        dtypes = [entry.dtype for entry in manifest.weights.values()] + floating
        model = rebuild_model(path, dtypes[0] if dtypes else torch.float32)
    targets = _targets(file, model, tensors, manifest)
    # No failure is expected from here on: the model is changed as a whole or not at all.
    dtypes = {name: entry.dtype for name, entry in manifest.weights.items()}
    dtypes |= {name: tensor.dtype for name, tensor in tensors.items()}
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


def load_training_state(folder: str | Path) -> dict[str, Any]:
    """Read the training state of a checkpoint, tensors and primitives only.

    Args:
        folder: as given to :func:`save`.

    Returns:
        What was given to :func:`save`, on the CPU.

    Raises:
        CheckpointError: if there is none, or the file is damaged.
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
    """
    return dict(Manifest.read(complete_folder(folder)).metadata)


def _collect(
    model: nn.Module, weights: QuantizedWeights
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to store, and the names that are tied to others."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
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
        value = value.detach().cpu()
        whole = value.untyped_storage().nbytes() == value.nbytes
        tensors[name] = value.contiguous() if whole else value.clone().contiguous()
    for name, rep in weights.items():
        for key, value in rep.tensors():
            packed = pack(value, rep.parametrization.code_bits) if key == "codes" else value
            tensors[f"{name}.{key}"] = packed.detach().cpu().contiguous()
    return tensors, tied


def _unpacked(
    file: Path, name: str, entry: WeightEntry, tensors: dict[str, Tensor]
) -> Representation:
    """Take the tensors of one representation out of the stored ones."""
    parametrization, layout = entry.parametrization, entry.parametrization.layout(entry.shape)
    shape = layout.rows, layout.cols, parametrization.codes_per_group
    try:
        packed = tensors.pop(f"{name}.codes")
        values = {
            value: tensors.pop(f"{name}.values.{value}").clone()  # off the mapped file
            for value in parametrization.value_shapes(entry.shape)
        }
        count = shape[0] * shape[1] * shape[2]
        codes = unpack(packed, parametrization.code_bits, count, entry.code_dtype)
        return Representation(parametrization, codes.view(shape), values, entry.shape)
    except KeyError as error:
        raise CheckpointError(f"{file}: the tensor {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {name!r} does not fit {MANIFEST}: {error}") from error


def _targets(
    file: Path, model: nn.Module, tensors: Mapping[str, Tensor], manifest: Manifest
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
