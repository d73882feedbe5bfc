"""One file of named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError

__all__ = ["TENSORS", "read_tensors", "write_tensors"]

#: The file of all tensors, where they are in one.
TENSORS = "model.safetensors"


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    name: str = TENSORS,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a file of tensors.

    Raises:
        CheckpointError: if they cannot be stored, or the disk is full.
    """
    file = folder / name
    file.touch()  # safetensors lets the owner alone read
    mode = file.stat().st_mode
    try:
        save_file(dict(tensors), str(file), metadata)
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be written ({error})") from error
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
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error})") from error
