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
from pvopt.formats.files import read_json
from pvopt.formats.folders import one_generation
from pvopt.formats.shards import read_shards, untied, write_shards
from pvopt.formats.transformers_files import (
    CONFIG,
    is_language_model,
    model_skeleton,
    rebuild_model,
    write_transformers_files,
)
from pvopt.parametrizations.representation import Representation
from pvopt.weights import QuantizedWeights

from .integer_grids import IntegerGrid, StoredGrid, stored_grid
from .layers import PACKED, PARTS, read_layer, write_layer
from .settings import METHOD, grid_of_layer, quantization_config, split_apart

__all__ = ["CompressedTensors"]

_WEIGHT = ".weight"


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
        try:
            config = read_json(folder, CONFIG, strict=False)
        except CheckpointError:
            return False
        found = config.get("quantization_config") if isinstance(config, dict) else None
        return isinstance(found, dict) and found.get("quant_method") == METHOD

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        model, weights = checkpoint.model, checkpoint.weights
        if not is_language_model(model):
            return f"only models of transformers can, got {type(model).__name__}"
        if checkpoint.training_state is not None:
            return "it has no place for a training state"
        grids = {}
        for name, rep in weights.items():
            reason = _reason(model, name, rep)
            if reason is not None:
                return f"{name!r}: {reason}"
            grids[name.removesuffix(_WEIGHT)] = stored_grid(rep.parametrization)
        return split_apart(grids, _dense_layers(model, weights))

    def foreign(self, folder: Path) -> Collection[str]:
        return foreign_files(folder)

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        model, weights = checkpoint.model, checkpoint.weights
        tensors, grids = untied(model), {}
        for name, rep in weights.items():
            grid = IntegerGrid.of(rep)
            if not torch.equal(grid.decode(), weights.parameter(name).to(rep.device)):
                raise CheckpointError(f"{folder}: {name!r} would be read back as another weight")
            layer = name.removesuffix(_WEIGHT)
            grids[layer] = grid.settings
            del tensors[name]
            tensors |= write_layer(layer, grid)
        config = quantization_config(grids, _dense_layers(model, weights))
        write_transformers_files(folder, model, checkpoint.tokenizer, config)
        write_shards(folder, tensors)
        write_export(folder, self.name)

    @contextmanager
    def transformers_files(self, folder: Path) -> Iterator[Path]:
        with settings_copied(folder) as files:
            yield files

    def read(self, folder: Path, model: nn.Module | None) -> Checkpoint:
        with one_generation(folder):
            config = read_json(folder, CONFIG, strict=False)["quantization_config"]
            tensors = read_shards(folder)
            reps = _representations(folder, config, tensors)
            others = {n: t for n, t in tensors.items() if not n.endswith(PARTS)}
            keep_dtypes = model is not None
            if model is None:
                with self.transformers_files(folder) as files:
                    count = len(reps) + len(others)
                    _check_fits(folder, model_skeleton(files, count), reps, others)
                    model = rebuild_model(files, _common_dtype(reps, others))
            _check_fits(folder, model, reps, others)
        _fill(model, reps, others, keep_dtypes=keep_dtypes)
        reps = {n: rep.to(model.get_parameter(n).device) for n, rep in reps.items()}
        weights = QuantizedWeights(model, reps)
        weights.write_()
        return Checkpoint(model, weights)


def _reason(model: nn.Module, name: str, rep: Representation) -> str | None:
    """Return why a weight cannot be stored, or None."""
    layer, parameter = name.removesuffix(_WEIGHT), model.get_parameter(name)
    if not name.endswith(_WEIGHT) or not isinstance(model.get_submodule(layer), nn.Linear):
        return "only weights of nn.Linear can be stored"
    uses = [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter]
    if len(uses) > 1:
        return f"it is tied to {uses[1]!r}, which cannot be told"
    if not (rep.view.plain and rep.space.trivial):
        return f"its space {rep.space} cannot be stored"
    try:
        stored_grid(rep.parametrization)
    except ValueError as error:
        return str(error)
    if rep.dtype != parameter.dtype:
        return (
            f"its scales are {rep.dtype} and the layer's weight {parameter.dtype}, which is not "
            "told apart: give both one dtype (rep.to, or pvopt export)"
        )
    return None


def _dense_layers(model: nn.Module, weights: QuantizedWeights) -> list[str]:
    """Return the names of the linear layers that are not quantized."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}{_WEIGHT}" not in weights
    ]


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
                reps[layer + _WEIGHT] = grid.representation()
    except KeyError as error:
        raise CheckpointError(f"{folder}: the tensor {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    parts = {layer + part for layer in grids for part in PARTS}
    lone = [name for name in tensors if name.endswith(PARTS) and name not in parts]
    if lone or not reps:
        raise CheckpointError(f"{folder}: holds {lone[:1] or 'no layer'} without packed integers")
    return reps


def _common_dtype(reps: Mapping[str, Representation], others: Mapping[str, Tensor]) -> torch.dtype:
    kinds = [rep.dtype for rep in reps.values()] + [t.dtype for t in others.values()]
    return next((kind for kind in kinds if kind.is_floating_point), torch.float32)


def _check_fits(
    folder: Path,
    model: nn.Module,
    reps: Mapping[str, Representation],
    others: Mapping[str, Tensor],
) -> None:
    """Raise unless the folder has exactly the tensors of a model."""
    state = model.state_dict(keep_vars=True)
    shapes = {name: tuple(t.shape) for name, t in others.items()}
    shapes |= {name: tuple(rep.shape) for name, rep in reps.items()}
    known = {id(state[name]) for name in shapes if name in state}
    missing = [name for name, tensor in state.items() if id(tensor) not in known]
    unknown = [name for name in shapes if name not in state]
    if missing or unknown:
        what = f"no weights for {missing[0]}" if missing else f"{unknown[0]}, unknown to the model"
        raise CheckpointError(f"{folder}: holds {what}")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {list(shape)}, the model's {list(state[name].shape)}"
            )


@torch.no_grad()
def _fill(
    model: nn.Module,
    reps: Mapping[str, Representation],
    others: Mapping[str, Tensor],
    *,
    keep_dtypes: bool,
) -> None:
    """Fill in what is not quantized; give all tensors the stored dtypes, or keep the model's."""
    state = model.state_dict(keep_vars=True)
    if not keep_dtypes:
        kinds = {n: rep.dtype for n, rep in reps.items()} | {n: t.dtype for n, t in others.items()}
        for name, dtype in kinds.items():
            state[name].data = state[name].data.to(dtype)
    for name, tensor in others.items():
        state[name].copy_(tensor)
