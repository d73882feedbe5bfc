"""The training state of a checkpoint: its tensors in one file, what holds them in another.

Neither is a pickle: reading them runs no code and allocates no more than what the files hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvopt.formats.errors import CheckpointError
from pvopt.formats.files import MAX_JSON_BYTES, read_json
from pvopt.formats.tensor_files import read_tensors, write_tensors

from .manifest import Manifest

__all__ = ["STATE", "STATE_TENSORS", "read_state", "write_state"]

STATE = "training_state.json"
STATE_TENSORS = "training_state.safetensors"


def write_state(folder: Path, state: Mapping[str, Any]) -> list[Path]:
    """Write a training state.

    Args:
        folder: where to.
        state: tensors, numbers, strings, bools and None, in dictionaries (whose keys are strings
            or integers), lists and tuples.

    Returns:
        The files.

    Raises:
        CheckpointError: if something else is in it.
    """
    tensors = _Tensors()
    description = _describe(state, "training_state", tensors)
    file = folder / STATE
    file.write_text(json.dumps(description, allow_nan=False), encoding="utf-8")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{file}: would be larger than {MAX_JSON_BYTES} bytes")
    return [write_tensors(folder, tensors.by_name, STATE_TENSORS), file]


def read_state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Read a training state.

    Args:
        folder: the checkpoint.
        manifest: of the checkpoint, which names both files.

    Returns:
        The state on the CPU, its dictionaries, lists and tuples as they were.

    Raises:
        CheckpointError: if a file is missing, damaged or foreign.
    """
    file = manifest.verify(folder, STATE)
    stored = read_tensors(manifest.verify(folder, STATE_TENSORS))
    # Copies: a mapped file takes the process down when somebody cuts it short.
    tensors = {name: tensor.clone() for name, tensor in stored.items()}
    try:
        found = _restore(read_json(folder, STATE), tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: must hold a dictionary, got a {type(found).__name__}")
    return found


class _Tensors:
    """Tensors to be stored, by number; none of them overlaps another, as the file has no views."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._taken: dict[int, list[tuple[int, int]]] = {}  # parts of each storage

    def add(self, tensor: Tensor) -> str:
        """Add a tensor and return its name."""
        tensor = tensor.detach().cpu().contiguous()
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        taken = self._taken.setdefault(tensor.untyped_storage().data_ptr(), [])
        if any(start < other_end and other < end for other, other_end in taken):
            tensor = tensor.clone()
        else:
            taken.append((start, end))
        name = str(len(self.by_name))
        self.by_name[name] = tensor
        return name


def _describe(value: Any, where: str, tensors: _Tensors) -> Any:
    """Return JSON for a value; its tensors are added to ``tensors``."""
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            raise CheckpointError(f"{where}: a {value.layout} tensor on {value.device} has no file")
        return {"tensor": tensors.add(value)}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise CheckpointError(f"{where}: keys must be strings or integers, got {key!r}")
        return {"dict": [[k, _describe(v, f"{where}[{k!r}]", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        parts = [_describe(v, f"{where}[{i}]", tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{where}: only tensors, numbers, strings, bools and None can be stored, got {value!r}"
    )


def _restore(description: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what JSON describes.

    Raises:
        KeyError: if a tensor is missing.
        ValueError, TypeError: if it is no description.
    """
    if not isinstance(description, dict):
        if isinstance(description, list):
            raise ValueError("a list needs its kind")
        return description
    ((kind, content),) = description.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        found = {key: _restore(value, tensors) for key, value in content}
        if len(found) < len(content) or not all(type(key) in (str, int) for key in found):
            raise ValueError("keys of dictionaries must be strings or integers, each once")
        return found
    if kind in ("list", "tuple"):
        parts = [_restore(value, tensors) for value in content]
        return parts if kind == "list" else tuple(parts)
    raise ValueError(f"unknown kind {kind!r}")
