"""Tensors in one safetensors file or several, with the index that transformers writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .files import is_plain_name, read_json, regular_file
from .native.tensors import TENSORS, read_tensors, write_tensors

__all__ = ["narrowest", "read_shards", "untied", "write_shards"]

_INDEX = "model.safetensors.index.json"
_PATTERN = "model{suffix}.safetensors"


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
    folder: Path, tensors: Mapping[str, Tensor], *, most_bytes: int = 5_000_000_000
) -> None:
    """Write tensors, in several files where one would be larger than some bytes.

    Raises:
        CheckpointError: if they cannot be stored, or the disk is full.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=_PATTERN, max_shard_size=most_bytes
    )
    for file, names in plan.filename_to_tensors.items():
        write_tensors(folder, {name: tensors[name] for name in names}, file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder; they are mapped, not copied.

    Raises:
        CheckpointError: if a file is missing or damaged, or the index does not say what is there.
    """
    if not (folder / _INDEX).exists():
        return read_tensors(regular_file(folder, TENSORS))
    index = read_json(folder, _INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{folder / _INDEX}: has no weight_map")
    found: dict[str, Tensor] = {}
    for file in dict.fromkeys(map(str, places.values())):
        if not is_plain_name(file):
            raise CheckpointError(f"{folder / _INDEX}: names a file outside of the folder: {file}")
        stored = read_tensors(regular_file(folder, file))
        if stored.keys() != {name for name, place in places.items() if place == file}:
            raise CheckpointError(f"{folder / file}: holds other tensors than the index says")
        found |= stored
    return found
