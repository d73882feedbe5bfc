"""What formats of other programs share that keep each linear layer in tensors of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme
from pvopt.spaces.contract import Space
from pvopt.weights import QuantizedWeights

from .contract import Checkpoint, Reader, Writer
from .errors import CheckpointError
from .exports import EXPORT, foreign_files, settings_copied, write_export
from .folders import one_generation
from .models import (
    WEIGHT,
    dense_layers,
    filled,
    quantization_settings,
    unsupported_model,
    unsupported_weight,
)
from .shards import read_shards, untied, write_shards
from .transformers_files import write_transformers_files

__all__ = ["LayerFormat"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LayerFormat(Reader, Writer):
    """A format whose layers have settings, the *kind*, and tensors named after the layer.

    The name of the format is ``quant_method`` in ``config.json``.
    """

    marker = EXPORT

    #: What the names of a layer's tensors end with; the first occurs in every layer.
    parts: ClassVar[tuple[str, ...]]

    #: Spaces that it can hold; weights of others are refused.
    spaces: ClassVar[tuple[type[Space], ...]] = ()

    @abstractmethod
    def kind(self, scheme: Scheme) -> Any:
        """Return how codes and values of a scheme are stored.

        Raises:
            ValueError: if they cannot be; the message says why.
        """

    def refusal(self, kind: Any, rep: Representation) -> str | None:
        """Return why a layer of this kind cannot be stored, or None."""
        return None

    @abstractmethod
    def conflict(self, kinds: Mapping[str, Any], dense: Collection[str]) -> str | None:
        """Return why layers cannot be stored together, or None.

        Args:
            kinds: of the quantized layers, by name.
            dense: names of the linear layers that are not quantized.
        """

    @abstractmethod
    def settings(self, kinds: Mapping[str, Any], dense: Collection[str]) -> dict[str, Any]:
        """Return ``quantization_config`` without ``quant_method``, for the same layers."""

    @abstractmethod
    def tensors(self, layer: str, rep: Representation) -> dict[str, Tensor]:
        """Return the tensors of a layer by name."""

    @abstractmethod
    def kind_of(self, settings: Mapping[str, Any], layer: str) -> Any:
        """Return how a layer is stored.

        Args:
            settings: ``quantization_config``, whoever wrote it.
            layer: its name.

        Raises:
            TypeError, ValueError: if the settings do not say so, or in a way that is not read.
        """

    def stored(self, tensors: dict[str, Tensor], weights: QuantizedWeights) -> dict[str, Tensor]:
        """Return all other tensors as they are stored.

        Args:
            tensors: by name.
            weights: the quantized ones.
        """
        return tensors

    def fitted(
        self,
        folder: Path,
        model: nn.Module | None,
        reps: dict[str, Representation],
        others: dict[str, Tensor],
    ) -> tuple[dict[str, Representation], dict[str, Tensor]]:
        """Return what was read as the model has it, where it is stored in another way.

        Args:
            folder: that was read.
            model: that is to be filled, or None.
            reps: quantized weights by name.
            others: the other tensors by name.

        Raises:
            CheckpointError: if something does not fit.
        """
        return reps, others

    def write_more(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write other files, beside the tensors and the files of transformers.

        Args:
            folder: with these.
            config: ``quantization_config``.
        """

    @abstractmethod
    def representation(
        self, layer: str, kind: Any, tensors: Mapping[str, Tensor]
    ) -> Representation:
        """Return codes and values of a layer.

        Raises:
            KeyError: if a tensor is missing.
            TypeError, ValueError: if one does not fit.
        """

    def match(self, folder: Path) -> bool:
        return (quantization_settings(folder) or {}).get("quant_method") == self.name

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        model, weights = checkpoint.model, checkpoint.weights
        reason = unsupported_model(checkpoint)
        if reason is not None:
            return reason
        kinds = {}
        for name, rep in weights.items():
            try:
                kinds[name.removesuffix(WEIGHT)] = self.kind(rep.scheme)
            except ValueError as error:
                return f"{name!r}: {error}"
            reason = unsupported_weight(model, name, rep, self.spaces)
            reason = reason or self.refusal(kinds[name.removesuffix(WEIGHT)], rep)
            if reason is not None:
                return f"{name!r}: {reason}"
        return self.conflict(kinds, dense_layers(model, weights))

    def foreign(self, folder: Path) -> Collection[str]:
        return foreign_files(folder)

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        model, weights = checkpoint.model, checkpoint.weights
        tensors, quantized, kinds = untied(model), {}, {}
        for name, rep in weights.items():
            layer = name.removesuffix(WEIGHT)
            kinds[layer] = self.kind(rep.scheme)
            own = self.tensors(layer, rep)
            read = {name: self.representation(layer, kinds[layer], own)}
            back = self.fitted(folder, model, read, {})[0][name].decode()
            if not torch.equal(back, weights.parameter(name).detach().cpu()):
                raise CheckpointError(f"{folder}: {name!r} would be read back as another weight")
            del tensors[name]
            quantized |= own
        settings = self.settings(kinds, dense_layers(model, weights))
        config = {"quant_method": self.name, **settings}
        write_transformers_files(folder, model, checkpoint.tokenizer, config)
        write_shards(folder, self.stored(tensors, weights) | quantized)
        self.write_more(folder, config)
        write_export(folder, self.name)

    @contextmanager
    def transformers_files(self, folder: Path) -> Iterator[Path]:
        with settings_copied(folder) as files:
            yield files

    def read(self, folder: Path, model: nn.Module | None) -> Checkpoint:
        with one_generation(folder):
            settings = quantization_settings(folder) or {}
            tensors = read_shards(folder)
            reps = {}
            try:
                for name in tensors:
                    if name.endswith(self.parts[0]):
                        layer = name.removesuffix(self.parts[0])
                        kind = self.kind_of(settings, layer)
                        reps[layer + WEIGHT] = self.representation(layer, kind, tensors)
                        _check_values(layer, reps[layer + WEIGHT])
            except KeyError as error:
                raise CheckpointError(f"{folder}: the tensor {error} is missing") from error
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{folder}: {error}") from error
            if not reps:
                raise CheckpointError(f"{folder}: holds no layer with {self.parts[0]}")
            parts = {name.removesuffix(WEIGHT) + part for name in reps for part in self.parts}
            others = {name: tensor for name, tensor in tensors.items() if name not in parts}
            twice = sorted(reps.keys() & others.keys())
            if twice:
                raise CheckpointError(f"{folder}: holds {twice[0]} twice, quantized and dense")
            reps, others = self.fitted(folder, model, reps, others)
            return filled(folder, model, reps, others, self.transformers_files(folder))


def _check_values(layer: str, rep: Representation) -> None:
    """Raise unless the values of a layer are finite, of a dtype that is computed in."""
    for name, value in rep.values.items():
        if value.dtype not in _DTYPES:
            raise ValueError(f"{layer}: {name} must be 16, 32 or 64 bits wide, got {value.dtype}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{layer}: {name} must be finite")
