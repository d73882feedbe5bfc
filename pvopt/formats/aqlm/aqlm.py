"""The format of AQLM: additive codebooks, one kind for all layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.formats.contract import FORMATS, Checkpoint, Reader, Writer
from pvopt.formats.errors import CheckpointError
from pvopt.formats.exports import EXPORT, foreign_files, settings_copied, write_export
from pvopt.formats.folders import one_generation
from pvopt.formats.models import (
    WEIGHT,
    dense_layers,
    filled,
    quantization_settings,
    unsupported_model,
    unsupported_weight,
)
from pvopt.formats.shards import read_shards, untied, write_shards
from pvopt.formats.transformers_files import write_transformers_files
from pvopt.parametrizations.representation import Representation

from .layers import CODES, PARTS, codebooks_of, codebooks_of_settings, read_layer, write_layer

__all__ = ["AQLMFormat"]

_METHOD = "aqlm"


@FORMATS.register
class AQLMFormat(Reader, Writer):
    """Models of transformers whose linear layers are additive codebooks.

    Example:
        >>> import tempfile
        >>> AQLMFormat().match(Path(tempfile.mkdtemp()))
        False
    """

    name = _METHOD
    marker = EXPORT

    def match(self, folder: Path) -> bool:
        found = quantization_settings(folder)
        return found is not None and found.get("quant_method") == _METHOD

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        reason = unsupported_model(checkpoint)
        kinds = {}
        for name, rep in checkpoint.weights.items() if reason is None else ():
            try:
                kinds[codebooks_of(rep.parametrization)] = name
                reason = unsupported_weight(checkpoint.model, name, rep)
            except ValueError as error:
                reason = str(error)
            if reason is not None:
                return f"{name!r}: {reason}"
        if len(kinds) > 1:
            one, other = list(kinds)[:2]
            return (
                f"all layers must have the same codebooks, {kinds[one]!r} has {one} and "
                f"{kinds[other]!r} {other}"
            )
        return reason

    def foreign(self, folder: Path) -> Collection[str]:
        return foreign_files(folder)

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        model, weights = checkpoint.model, checkpoint.weights
        tensors = untied(model)
        books = codebooks_of(next(iter(weights.values())).parametrization)
        for name, rep in weights.items():
            layer = name.removesuffix(WEIGHT)
            parts = write_layer(layer, rep)
            back = read_layer(layer, books, parts).decode()
            if not torch.equal(back, weights.parameter(name).detach().cpu()):
                raise CheckpointError(f"{folder}: {name!r} would be read back as another weight")
            del tensors[name]
            tensors |= parts
        dense = dense_layers(model, weights)
        config = {
            "quant_method": _METHOD,
            "num_codebooks": books.num_codebooks,
            "nbits_per_codebook": books.bits,
            "in_group_size": books.in_group,
            "out_group_size": books.out_group,
            # Names of weights by their definition, of layers in what reads them.
            "linear_weights_not_to_quantize": [*dense, *(f"{name}{WEIGHT}" for name in dense)],
        }
        write_transformers_files(folder, model, checkpoint.tokenizer, config)
        write_shards(folder, tensors)
        write_export(folder, self.name)

    @contextmanager
    def transformers_files(self, folder: Path) -> Iterator[Path]:
        with settings_copied(folder) as files:
            yield files

    def read(self, folder: Path, model: nn.Module | None) -> Checkpoint:
        with one_generation(folder):
            config = quantization_settings(folder) or {}
            tensors = read_shards(folder)
            reps = _representations(folder, config, tensors)
            parts = {n.removesuffix(WEIGHT) + part for n in reps for part in PARTS}
            others = {n: t for n, t in tensors.items() if n not in parts}
            return filled(folder, model, reps, others)


def _representations(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Representation]:
    """Return the quantized weights of a folder by name."""
    try:
        books = codebooks_of_settings(config)
        layers = [name.removesuffix(CODES) for name in tensors if name.endswith(CODES)]
        reps = {layer + WEIGHT: read_layer(layer, books, tensors) for layer in layers}
    except KeyError as error:
        raise CheckpointError(f"{folder}: the tensor {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if not reps:
        raise CheckpointError(f"{folder}: holds no layer with codes")
    return reps
