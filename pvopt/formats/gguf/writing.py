"""Writing a model into one file: whether that is possible, and how."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvopt.formats.contract import Checkpoint
from pvopt.formats.errors import CheckpointError
from pvopt.formats.models import unsupported_model
from pvopt.formats.shards import narrowest, untied
from pvopt.parametrizations.representation import Representation

from .architecture import head_size, rotation_of, settings_of, unsupported_config
from .blocks import BlockType
from .container_writer import TensorEntry, write_container
from .names import heads_of, interleaved, name_in_file
from .positions import FACTORS, frequency_factors
from .representations import blocks_of, fitting_type, representation_of
from .tensors import DENSE
from .tokenizers import tokenizer_settings

__all__ = ["unwritable", "write_file"]


def unwritable(checkpoint: Checkpoint, types: Collection[str]) -> str | None:
    """Return why a model cannot be written in blocks of some types, or None."""
    model: Any = checkpoint.model
    reason = unsupported_model(checkpoint) or unsupported_config(model.config)
    if reason is not None:
        return reason
    unknown = [name for name in untied(model) if name_in_file(name) is None]
    if unknown:
        return f"it has no place for {unknown[0]!r}"
    if not model.config.tie_word_embeddings and "lm_head.weight" not in untied(model):
        return "its embeddings are the output matrix, and its configuration says otherwise"
    for name, rep in checkpoint.weights.items():
        if not (rep.view.plain and rep.space.trivial):
            return f"{name!r}: its space {rep.space} cannot be stored"
        if len(rep.shape) != 2 or name not in untied(model):
            return f"{name!r}: only matrices can be stored, under their first name"
        try:
            blocks_of(rep, fitting_type(rep.parametrization, rep.shape[1], types))
        except ValueError as error:
            return f"{name!r}: {error}"
    try:
        tokenizer_settings(checkpoint.tokenizer, model.config.vocab_size)
    except ValueError as error:
        return str(error)
    return None


def write_file(file: Path, checkpoint: Checkpoint, types: Collection[str]) -> None:
    """Write a model that can be written in blocks of some types.

    Raises:
        CheckpointError: if a weight would be read back as another one.
    """
    model: Any = checkpoint.model
    config, weights = model.config, checkpoint.weights
    tensors = untied(model)
    stored: dict[str, BlockType | torch.dtype] = {
        name: fitting_type(rep.parametrization, rep.shape[1], types)
        for name, rep in weights.items()
    }
    # What has one dimension is multiplied in float32 by llama.cpp, which wants it so.
    others = {name: tensor for name, tensor in tensors.items() if name not in weights}
    stored |= {n: narrowest(t) if t.dim() > 1 else torch.float32 for n, t in others.items()}

    def contents() -> Iterator[Tensor]:
        for name, tensor in tensors.items():
            kind = stored[name]
            if isinstance(kind, BlockType):
                content = _packed(file, name, weights[name], kind, tensor)
            else:
                content = tensor.to(kind)
            heads = heads_of(name, config.num_attention_heads, config.num_key_value_heads)
            yield interleaved(content, heads)

    table = [_entry(name, tensor, stored[name]) for name, tensor in tensors.items()]
    written = contents()
    factors = frequency_factors(rotation_of(config), head_size(config))
    if factors is not None:
        shape, size = tuple(factors.shape), factors.nbytes
        table.append(TensorEntry(name=FACTORS, number=DENSE[factors.dtype], shape=shape, size=size))
        written = itertools.chain(written, [factors])
    write_container(file, _settings(config, checkpoint.tokenizer), table, written)


def _entry(name: str, tensor: Tensor, kind: BlockType | torch.dtype) -> TensorEntry:
    theirs = name_in_file(name)
    assert theirs is not None
    if isinstance(kind, BlockType):
        number, size = kind.number, tensor.numel() // kind.size * kind.bytes
    else:
        number, size = DENSE[kind], tensor.numel() * kind.itemsize
    return TensorEntry(name=theirs, number=number, shape=tuple(tensor.shape), size=size)


def _packed(file: Path, name: str, rep: Representation, kind: BlockType, weight: Tensor) -> Tensor:
    """Return the rows of a weight in blocks; they decode to it."""
    rows = kind.pack(blocks_of(rep.to("cpu"), kind))
    back = representation_of(kind, kind.unpack(rows)).decode()
    if not torch.equal(back.to(weight.dtype), weight):
        raise CheckpointError(
            f"{file}: {name!r} would be read back as another weight; files are decoded in float32, "
            f"the model in {rep.dtype}"
        )
    return rows


def _settings(config: Any, tokenizer: Any) -> dict[str, Any]:
    """Return all settings of a file."""
    found: dict[str, Any] = {"general.architecture": "llama", "general.type": "model"}
    found |= {f"llama.{key}": value for key, value in settings_of(config).items()}
    vocabulary = tokenizer_settings(tokenizer, config.vocab_size)
    found |= {f"tokenizer.{key}": value for key, value in vocabulary.items()}
    return found | {"general.quantization_version": 2}
