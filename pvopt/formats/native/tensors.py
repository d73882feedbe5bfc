"""Between representations and the named tensors of a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pvopt.formats.errors import CheckpointError
from pvopt.formats.shards import INDEX, read_shards
from pvopt.formats.tensor_files import TENSORS
from pvopt.parametrizations.representation import Representation

from .manifest import MANIFEST, Manifest, WeightEntry

__all__ = [
    "check_files",
    "check_parts",
    "checked_tensors",
    "packed",
    "part_names",
    "tensors_place",
    "unpacked",
]

_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# A hundredth of a bit for each weight.
_MAX_WEIGHTS_PER_BYTE = 800


def packed(name: str, rep: Representation) -> dict[str, Tensor]:
    """Return the tensors to store for a representation, by name.

    Each stream of codes is packed at its own width, as ``NAME.codes.STREAM``; values are stored as
    they are, as ``NAME.values.VALUE``. None of them refers to the memory of a stack.

    Raises:
        CheckpointError: if a code does not exist, or too few bytes stand for the weight.
    """
    try:
        rep.check_codes()
    except ValueError as error:
        raise CheckpointError(f"{name!r} cannot be stored: {error}") from error
    codes = {key: stream.pack(rep.codes[key]) for key, stream in rep.streams.items()}
    tensors = {f"{name}.codes.{key}": code.cpu() for key, code in codes.items()}
    for key, value in rep.values.items():
        tensors[f"{name}.values.{key}"] = value.detach().cpu().contiguous()
    _check_size(name, rep.shape, tensors.values())
    return tensors


def _check_size(name: str, shape: tuple[int, ...], tensors: Iterable[Tensor]) -> None:
    """Raise if so few bytes stand for so many weights that the file may be made to fill memory."""
    size = sum(tensor.nbytes for tensor in tensors)
    if math.prod(shape) > _MAX_WEIGHTS_PER_BYTE * size:
        raise CheckpointError(
            f"{name!r} of shape {list(shape)} cannot be stored in {size} bytes: the least is a "
            "hundredth of a bit for each weight"
        )


def part_names(name: str, entry: WeightEntry) -> dict[str, str]:
    """Return the names of a weight's tensors in the file, by kind and key."""
    kinds = (("codes", entry.streams), ("values", entry.value_shapes))
    parts = [f"{kind}.{key}" for kind, keys in kinds for key in keys]
    return {part: f"{name}.{part}" for part in parts}


def check_parts(file: Path, name: str, entry: WeightEntry, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless the stored tensors of a weight fit, before anything is made of them.

    Raises:
        CheckpointError: if a tensor is missing or does not fit.
    """
    names = part_names(name, entry)
    missing = [stored for stored in names.values() if stored not in tensors]
    if missing:
        raise CheckpointError(f"{file}: the tensor {missing[0]!r} is missing")
    shapes = {f"codes.{key}": (s.stored_bytes,) for key, s in entry.streams.items()}
    shapes |= {f"values.{key}": shape for key, shape in entry.value_shapes.items()}
    dtypes = set()
    for part, shape in shapes.items():
        tensor = tensors[names[part]]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{file}: {name!r} does not fit {MANIFEST}: {part} must have shape {list(shape)}, "
                f"got {list(tensor.shape)}"
            )
        if part.startswith("values."):
            dtypes.add(tensor.dtype)
    if len(dtypes) > 1 or not dtypes <= _FLOATING:
        raise CheckpointError(
            f"{file}: {name!r} must have values of one floating dtype, got {[*dtypes]}"
        )
    try:
        _check_size(name, entry.shape, (tensors[stored] for stored in names.values()))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def tensors_place(folder: Path, manifest: Manifest) -> Path:
    """Return the file of all tensors, or the index of several."""
    return folder / (INDEX if INDEX in manifest.files else TENSORS)


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Raise unless a checkpoint's tensors are in these files, which another program is to read.

    Raises:
        CheckpointError: if a file is of something else.
    """
    known = Manifest.read(folder).files
    for name in names:
        if name not in known:
            raise CheckpointError(f"{folder / name}: is no file of the checkpoint beside it")


def checked_tensors(folder: Path, manifest: Manifest) -> tuple[Path, dict[str, Tensor]]:
    """Read all tensors; every weight of the manifest fits, nothing is made of them yet.

    Returns:
        The file that messages name, and the tensors.

    Raises:
        CheckpointError: if a file is damaged, or a tensor is missing or does not fit.
    """
    file = tensors_place(folder, manifest)
    tensors = read_shards(folder, sharded=file.name == INDEX, file_of=manifest.verify)
    for name, entry in manifest.weights.items():
        check_parts(file, name, entry, tensors)
    return file, tensors


def unpacked(
    file: Path, name: str, entry: WeightEntry, tensors: Mapping[str, Tensor]
) -> Representation:
    """Make a representation of the stored tensors, which fit.

    Raises:
        CheckpointError: if a code does not exist.
    """
    names = part_names(name, entry)
    try:
        scheme = entry.scheme
        rep = Representation(
            scheme.parametrization,
            {k: s.unpack(tensors[names[f"codes.{k}"]]) for k, s in entry.streams.items()},
            # off the mapped file
            {k: tensors[names[f"values.{k}"]].clone() for k in entry.value_shapes},
            entry.shape,
            scheme.space,
            view=scheme.view,
        )
        rep.check_codes()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {name!r} does not fit {MANIFEST}: {error}") from error
    return rep
