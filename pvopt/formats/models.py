"""Models whose folders other programs write: whether tensors fit, and filling them in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.parametrizations.representation import Representation
from pvopt.spaces.contract import Space
from pvopt.weights import QuantizedWeights

from .contract import Checkpoint
from .errors import CheckpointError
from .exports import settings_copied
from .files import read_json
from .settings_checks import CONFIG
from .transformers_files import is_language_model, model_skeleton, rebuild_model

__all__ = [
    "WEIGHT",
    "dense_layers",
    "filled",
    "quantization_settings",
    "unsupported_model",
    "unsupported_weight",
]

#: What the name of a layer's weight ends with.
WEIGHT = ".weight"


def unsupported_model(checkpoint: Checkpoint) -> str | None:
    """Return why a model cannot be told to other programs, or None."""
    if not is_language_model(checkpoint.model):
        return f"only models of transformers can, got {type(checkpoint.model).__name__}"
    if not checkpoint.weights:
        return "it has no quantized weight"
    if checkpoint.training_state is not None:
        return "it has no place for a training state"
    return None


def unsupported_weight(
    model: nn.Module, name: str, rep: Representation, spaces: tuple[type[Space], ...] = ()
) -> str | None:
    """Return why a weight cannot be told, whatever its codes stand for, or None.

    Args:
        model: that it belongs to.
        name: of the parameter.
        rep: codes and values.
        spaces: that can be told, besides the trivial one.
    """
    parameter = model.get_parameter(name)
    if not name.endswith(WEIGHT) or not isinstance(
        model.get_submodule(name.removesuffix(WEIGHT)), nn.Linear
    ):
        return "only weights of nn.Linear can be stored"
    uses = [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter]
    if len(uses) > 1:
        return f"it is tied to {uses[1]!r}, which cannot be told"
    if not (rep.view.plain and (rep.space.trivial or isinstance(rep.space, spaces))):
        return f"its space {rep.space} cannot be stored"
    if rep.dtype != parameter.dtype:
        return (
            f"its values are {rep.dtype} and the layer's weight {parameter.dtype}, which is not "
            "told apart: give both one dtype (rep.to, or pvopt export)"
        )
    return None


def quantization_settings(folder: Path) -> Mapping[str, Any] | None:
    """Return what a folder's configuration says of quantization; None where nothing can be read."""
    try:
        config = read_json(folder, CONFIG, strict=False)
    except CheckpointError:
        return None
    found = config.get("quantization_config") if isinstance(config, dict) else None
    return found if isinstance(found, dict) else None


def dense_layers(model: nn.Module, weights: QuantizedWeights) -> list[str]:
    """Return the names of the linear layers that are not quantized."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}{WEIGHT}" not in weights
    ]


def filled(
    folder: Path,
    model: nn.Module | None,
    reps: Mapping[str, Representation],
    others: Mapping[str, Tensor],
    settings: AbstractContextManager[Path] | None = None,
) -> Checkpoint:
    """Fill a model with what a folder holds; nothing is changed if something does not fit.

    Args:
        folder: that is read.
        model: to fill in place, keeping its dtypes and devices; None rebuilds the folder's.
        reps: quantized weights by name.
        others: the other tensors by name.
        settings: gives a folder with the files of transformers; None takes those of ``folder``.

    Raises:
        CheckpointError: if the model cannot be rebuilt or has other tensors, or a weight is not
            finite.
    """
    keep_dtypes = model is not None
    if model is None:
        with settings or settings_copied(folder) as files:
            _check_fits(folder, model_skeleton(files, len(reps) + len(others)), reps, others)
            model = rebuild_model(files, _common_dtype(reps, others))
    _check_fits(folder, model, reps, others)
    _check_finite(folder, model, others)
    _fill(model, reps, others, keep_dtypes=keep_dtypes)
    moved = {name: rep.to(model.get_parameter(name).device) for name, rep in reps.items()}
    weights = QuantizedWeights(model, moved)
    weights.write_()
    return Checkpoint(model, weights)


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
    for name in reps:
        shared = [n for n in shapes if n != name and state[n] is state[name]]
        if shared:
            raise CheckpointError(f"{folder}: {name} and {shared[0]} are one weight in the model")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {list(shape)}, the model's {list(state[name].shape)}"
            )
    for name, tensor in others.items():
        if state[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"{folder}: {name} must hold floats, got {tensor.dtype}")


def _check_finite(folder: Path, model: nn.Module, others: Mapping[str, Tensor]) -> None:
    """Raise if a dense weight holds NaN or infinity; masks, which are buffers, may."""
    for name, parameter in model.named_parameters():
        tensor = others.get(name)
        if tensor is None or not parameter.is_floating_point():
            continue
        if not all(bool(end.isfinite()) for end in tensor.float().flatten().aminmax()):
            raise CheckpointError(f"{folder}: {name} has NaN or infinite entries")


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
