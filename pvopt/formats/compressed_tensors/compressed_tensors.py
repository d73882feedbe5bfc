"""The format of compressed-tensors, "pack-quantized": integers of 2 to 8 bits, scales per group."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from pvopt.formats.contract import FORMATS
from pvopt.formats.integer_grids import IntegerGrid, StoredGrid, stored_grid
from pvopt.formats.layerwise import LayerFormat
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme

from .layers import PARTS, read_layer, write_layer
from .settings import grid_of_layer, quantization_config, split_apart

__all__ = ["CompressedTensors"]


@FORMATS.register
class CompressedTensors(LayerFormat):
    """Models of transformers whose linear layers are grids of integers: vLLM's 2 to 8 bits.

    Reading gives grids (``grid:2g64s`` or ``grid:2g64z``), whatever was written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.compressed_tensors import CompressedTensors
        >>> CompressedTensors().match(Path(tempfile.mkdtemp()))
        False

    References:
        The package ``compressed-tensors``, format ``pack-quantized``, release 0.20.
    """

    name = "compressed-tensors"
    usage = "vllm serve {folder}"
    parts = PARTS

    def kind(self, scheme: Scheme) -> StoredGrid:
        return stored_grid(scheme.parametrization)

    def conflict(self, kinds: Mapping[str, StoredGrid], dense: Collection[str]) -> str | None:
        return split_apart(kinds, dense)

    def settings(self, kinds: Mapping[str, StoredGrid], dense: Collection[str]) -> dict[str, Any]:
        return quantization_config(kinds, dense)

    def tensors(self, layer: str, rep: Representation) -> dict[str, Tensor]:
        return write_layer(layer, IntegerGrid.of(rep))

    def kind_of(self, settings: Mapping[str, Any], layer: str) -> StoredGrid:
        return grid_of_layer(settings, layer)

    def representation(
        self, layer: str, kind: StoredGrid, tensors: Mapping[str, Tensor]
    ) -> Representation:
        return read_layer(layer, kind, tensors).representation()
