"""Between representations and the named tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pvopt.formats.errors import CheckpointError
from pvopt.parametrizations.representation import Representation

from .manifest import MANIFEST, WeightEntry

__all__ = ["TENSORS", "packed", "read_tensors", "unpacked", "write_tensors"]

#: The file of all tensors.
TENSORS = "model.safetensors"


def packed(name: str, rep: Representation) -> dict[str, Tensor]:
    """Return the tensors to store for a representation, by name.

    Each stream of codes is packed at its own width, as ``NAME.codes.STREAM``; values are stored as
    they are, as ``NAME.values.VALUE``. None of them refers to the memory of a stack.

    Raises:
        CheckpointError: if a code does not exist.
    """
    try:
        rep.check_codes()
    except ValueError as error:
        raise CheckpointError(f"{name!r} cannot be stored: {error}") from error
    codes = {key: stream.pack(rep.codes[key]) for key, stream in rep.streams.items()}
    tensors = {f"{name}.codes.{key}": code.cpu() for key, code in codes.items()}
    for key, value in rep.values.items():
        tensors[f"{name}.values.{key}"] = value.detach().cpu().contiguous()
    return tensors


def unpacked(
    file: Path, name: str, entry: WeightEntry, tensors: dict[str, Tensor]
) -> Representation:
    """Take the tensors of one representation out of the stored ones.

    Raises:
        CheckpointError: if a tensor is missing or does not fit.
    """
    try:
        codes = {
            key: stream.unpack(tensors.pop(f"{name}.codes.{key}"))
            for key, stream in entry.streams.items()
        }
        values = {
            key: tensors.pop(f"{name}.values.{key}").clone()  # off the mapped file
            for key in entry.value_shapes
        }
        scheme = entry.scheme
        rep = Representation(
            scheme.parametrization, codes, values, entry.shape, scheme.space, view=scheme.view
        )
        rep.check_codes()
    except KeyError as error:
        raise CheckpointError(f"{file}: the tensor {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {name!r} does not fit {MANIFEST}: {error}") from error
    return rep


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write the file of tensors."""
    file = folder / TENSORS
    file.touch()  # safetensors lets the owner alone read
    mode = file.stat().st_mode
    save_file(dict(tensors), str(file))
    file.chmod(mode)
    return file


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a file of tensors; they are mapped, not copied.

    Raises:
        CheckpointError: if it is not a safetensors file.
    """
    try:
        with safe_open(str(file), framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error})") from error
