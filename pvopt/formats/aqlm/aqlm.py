"""The format of AQLM: additive codebooks, one kind for all layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from pvopt.formats.contract import FORMATS
from pvopt.formats.layerwise import LayerFormat
from pvopt.formats.models import WEIGHT
from pvopt.parametrizations.additive_codebooks import AdditiveCodebooks
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme

from .layers import PARTS, codebooks_of, codebooks_of_settings, read_layer, write_layer

__all__ = ["AQLMFormat"]


@FORMATS.register
class AQLMFormat(LayerFormat):
    """Models of transformers whose linear layers are additive codebooks.

    Reading gives :class:`pvopt.AdditiveCodebooks`, whatever was written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.aqlm import AQLMFormat
        >>> AQLMFormat().match(Path(tempfile.mkdtemp()))
        False

    References:
        AQLM (arXiv 2401.06118), section 3; the files of its published models.
    """

    name = "aqlm"
    usage = 'transformers.AutoModelForCausalLM.from_pretrained("{folder}")'
    parts = PARTS

    def kind(self, scheme: Scheme) -> AdditiveCodebooks:
        return codebooks_of(scheme.parametrization)

    def conflict(
        self, kinds: Mapping[str, AdditiveCodebooks], dense: Collection[str]
    ) -> str | None:
        alike = {kind: layer for layer, kind in kinds.items()}
        if len(alike) == 1:
            return None
        one, other = list(alike)[:2]
        return (
            f"all layers must have the same codebooks, {alike[one]!r} has {one} and "
            f"{alike[other]!r} {other}"
        )

    def settings(
        self, kinds: Mapping[str, AdditiveCodebooks], dense: Collection[str]
    ) -> dict[str, Any]:
        books = next(iter(kinds.values()))
        return {
            "num_codebooks": books.num_codebooks,
            "nbits_per_codebook": books.bits,
            "in_group_size": books.in_group,
            "out_group_size": books.out_group,
            # Names of weights by their definition, of layers in what reads them.
            "linear_weights_not_to_quantize": [*dense, *(f"{name}{WEIGHT}" for name in dense)],
        }

    def tensors(self, layer: str, rep: Representation) -> dict[str, Tensor]:
        return write_layer(layer, rep)

    def kind_of(self, settings: Mapping[str, Any], layer: str) -> AdditiveCodebooks:
        return codebooks_of_settings(settings)

    def representation(
        self, layer: str, kind: AdditiveCodebooks, tensors: Mapping[str, Tensor]
    ) -> Representation:
        return read_layer(layer, kind, tensors)
