"""Tensors in one safetensors file or several, with the index that transformers writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .files import is_plain_name, read_json, regular_file
from .tensor_files import TENSORS, read_tensors, write_tensors

__all__ = [
    "INDEX",
    "SHARD_BYTES",
    "holds_tensors",
    "narrowest",
    "read_shards",
    "untied",
    "write_shards",
]

#: Which of several files holds which tensor.
INDEX = "model.safetensors.index.json"
#: The most that one file of tensors holds, unless one tensor alone is larger.
SHARD_BYTES = 5_000_000_000
_FILE = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors")


def holds_tensors(name: str) -> bool:
    """Tell whether a file is, by its name, that of all tensors or one of several.

    Example:
        >>> from pvopt.formats.shards import holds_tensors
        >>> holds_tensors("model-00001-of-00002.safetensors"), holds_tensors("config.json")
        (True, False)
    """
    return _FILE.fullmatch(name) is not None


def untied(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model by name; of those that are tied the first."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach().cpu().contiguous()
    return found


def narrowest(tensor: Tensor) -> torch.dtype:
    """Return the dtype that holds a tensor exactly and takes the least room.

    Example:
        >>> import torch
        >>> from pvopt.formats.shards import narrowest
        >>> narrowest(torch.tensor([[0.5, 1e-5]])), narrowest(torch.tensor([[0.5, 1.0]]))
        (torch.float32, torch.float16)
    """
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
            return dtype
    return torch.float32


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], *, most_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors, in several files where one would be larger than some bytes.

    Raises:
        CheckpointError: if they cannot be stored, or the disk is full.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from pvopt.formats.shards import write_shards
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_shards(folder, {"a": torch.ones(2), "b": torch.ones(1)}, most_bytes=8)
        >>> sorted(file.name for file in folder.iterdir())[:2]
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        taken = sum(other.nbytes for other in shards[-1].values())
        if shards[-1] and taken + tensor.nbytes > most_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        write_tensors(folder, tensors, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder, shard, file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_shards(
    folder: Path,
    *,
    sharded: bool | None = None,
    file_of: Callable[[Path, str], Path] = regular_file,
) -> dict[str, Tensor]:
    """Read all tensors of a folder; they are mapped, not copied.

    Args:
        folder: that holds one file of tensors, or several and an index.
        sharded: whether they are several; None for whether there is an index.
        file_of: returns the path of a file of the folder by its name, or refuses it.

    Raises:
        CheckpointError: if a file is missing or damaged, or the index does not say what is there.
    """
    if not ((folder / INDEX).exists() if sharded is None else sharded):
        return read_tensors(file_of(folder, TENSORS))
    file_of(folder, INDEX)
    index = read_json(folder, INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{folder / INDEX}: has no weight_map")
    found: dict[str, Tensor] = {}
    for file in dict.fromkeys(map(str, places.values())):
        if not is_plain_name(file):
            raise CheckpointError(f"{folder / INDEX}: names a file outside of the folder: {file}")
        stored = read_tensors(file_of(folder, file))
        if stored.keys() != {name for name, place in places.items() if place == file}:
            raise CheckpointError(f"{folder / file}: holds other tensors than the index says")
        found |= stored
    return found
