"""The format of compressed-tensors, "pack-quantized": integers of 2 to 8 bits, scales per group."""

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

from .integer_grids import IntegerGrid, StoredGrid, stored_grid
from .layers import PACKED, PARTS, read_layer, write_layer
from .settings import METHOD, grid_of_layer, quantization_config, split_apart

__all__ = ["CompressedTensors"]


@FORMATS.register
class CompressedTensors(Reader, Writer):
    """Models of transformers whose linear layers are grids of integers: vLLM's 2 to 8 bits.

    Reading gives grids (``grid:2g64s`` or ``grid:2g64z``), whatever was written.

    Example:
        >>> import tempfile
        >>> CompressedTensors().match(Path(tempfile.mkdtemp()))
        False
    """

    name = METHOD
    marker = EXPORT

    def match(self, folder: Path) -> bool:
        found = quantization_settings(folder)
        return found is not None and found.get("quant_method") == METHOD

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        reason = unsupported_model(checkpoint)
        grids = {}
        for name, rep in checkpoint.weights.items() if reason is None else ():
            try:
                grids[name.removesuffix(WEIGHT)] = stored_grid(rep.parametrization)
                reason = unsupported_weight(checkpoint.model, name, rep)
            except ValueError as error:
                reason = str(error)
            if reason is not None:
                return f"{name!r}: {reason}"
        return reason or split_apart(grids, dense_layers(checkpoint.model, checkpoint.weights))

    def foreign(self, folder: Path) -> Collection[str]:
        return foreign_files(folder)

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        model, weights = checkpoint.model, checkpoint.weights
        tensors, grids = untied(model), {}
        for name, rep in weights.items():
            grid = IntegerGrid.of(rep)
            if not torch.equal(grid.decode(), weights.parameter(name).to(rep.device)):
                raise CheckpointError(f"{folder}: {name!r} would be read back as another weight")
            layer = name.removesuffix(WEIGHT)
            grids[layer] = grid.settings
            del tensors[name]
            tensors |= write_layer(layer, grid)
        config = quantization_config(grids, dense_layers(model, weights))
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
            others = {n: t for n, t in tensors.items() if not n.endswith(PARTS)}
            return filled(folder, model, reps, others)


def _representations(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Representation]:
    """Return the quantized weights of a folder by name."""
    reps, grids = {}, dict[str, StoredGrid]()
    try:
        for name in tensors:
            if name.endswith(PACKED):
                layer = name.removesuffix(PACKED)
                grids[layer] = grid_of_layer(config, layer)
                grid = read_layer(layer, grids[layer], tensors)
                reps[layer + WEIGHT] = grid.representation()
    except KeyError as error:
        raise CheckpointError(f"{folder}: the tensor {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    parts = {layer + part for layer in grids for part in PARTS}
    lone = [name for name in tensors if name.endswith(PARTS) and name not in parts]
    if lone or not reps:
        raise CheckpointError(f"{folder}: holds {lone[:1] or 'no layer'} without packed integers")
    return reps
