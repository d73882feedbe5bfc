"""Between a model with representations and the named tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from pvopt.parametrizations import Representation
from pvopt.weights import QuantizedWeights

from pvopt.formats.errors import CheckpointError
from .manifest import MANIFEST, Manifest, WeightEntry
from .words import pack_codes, unpack_codes

__all__ = ["collect", "targets", "unpacked"]


def collect(
    model: nn.Module, weights: QuantizedWeights
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to store, and the names that are tied to others."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    memories: set[int] = set()
    first: dict[int, str] = {id(weights.parameter(name)): name for name in weights}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name}: only tensors can be saved, got {type(value).__name__}")
        if name in weights:
            continue
        owner = first.setdefault(id(value), name)
        if owner != name:
            tied[name] = owner
            continue
        # A copy where the memory is shared with another tensor: the format has no views.
        value = value.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if memory in memories else value
        memories.add(memory)
    for name, rep in weights.items():
        for key, value in rep.tensors():
            packed = pack_codes(value, rep.parametrization, rep.shape) if key == "codes" else value
            tensors[f"{name}.{key}"] = packed.detach().cpu().contiguous()
    return tensors, tied


def unpacked(
    file: Path, name: str, entry: WeightEntry, tensors: dict[str, Tensor]
) -> Representation:
    """Take the tensors of one representation out of the stored ones."""
    parametrization = entry.parametrization
    try:
        packed = tensors.pop(f"{name}.codes")
        values = {
            value: tensors.pop(f"{name}.values.{value}").clone()  # off the mapped file
            for value in parametrization.value_shapes(entry.shape)
        }
        codes = unpack_codes(packed, parametrization, entry.shape, entry.code_dtype)
        return Representation(parametrization, codes, values, entry.shape)
    except KeyError as error:
        raise CheckpointError(f"{file}: the tensor {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {name!r} does not fit {MANIFEST}: {error}") from error


def targets(
    file: Path, model: nn.Module, tensors: Mapping[str, Tensor], manifest: Manifest
) -> dict[str, Tensor]:
    """Return the model's tensors to fill by name; check that names and shapes agree."""
    state = model.state_dict(keep_vars=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes |= {name: entry.shape for name, entry in manifest.weights.items()}
    wanted = {name: value for name, value in state.items() if name not in manifest.tied}
    for what, names in (
        ("no weights for", wanted.keys() - shapes.keys()),
        ("weights unknown to the model:", shapes.keys() - wanted.keys()),
    ):
        if names:
            shown = sorted(names)[:5] + ["..."] * (len(names) > 5)
            raise CheckpointError(f"{file}: holds {what} {', '.join(shown)}")
    for name, value in wanted.items():
        if tuple(value.shape) != shapes[name]:
            raise CheckpointError(
                f"{file}: {name} has shape {list(shapes[name])}, "
                f"the model's has {list(value.shape)}"
            )
    for name, owner in manifest.tied.items():
        if name not in state or owner not in state or state[name] is not state[owner]:
            raise CheckpointError(f"{file}: {name} is tied to {owner}, in the model it is not")
    return wanted
