"""The format of GPTQ: grids of integers, one kind for all layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from pvopt.formats.contract import FORMATS
from pvopt.formats.integer_grids import StoredGrid, stored_grid
from pvopt.formats.layerwise import LayerFormat
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme
from pvopt.spaces import Permutation

from .layers import PARTS, GPTQGrid, misfit, read_layer, write_layer

__all__ = ["GPTQFormat"]

_BITS = (2, 3, 4, 8)
_VERSIONS = ("gptq", "gptq_v2")


@FORMATS.register
class GPTQFormat(LayerFormat):
    """Models of transformers whose linear layers are grids of integers of 2, 3, 4 or 8 bits.

    Groups are neighbours, or move with the inputs (``perm+grid:4g64s``). Reading gives grids of the
    same kind. Zero points are stored as they are (``gptq_v2``); symmetric grids, which have none,
    are written in the first version, which everybody loads.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.gptq import GPTQFormat
        >>> GPTQFormat().match(Path(tempfile.mkdtemp()))
        False

    References:
        GPTQ (arXiv 2210.17323); the packages ``auto-gptq`` and ``gptqmodel``, release 7.7.
    """

    name = "gptq"
    usage = 'transformers.AutoModelForCausalLM.from_pretrained("{folder}")'
    parts = PARTS
    spaces = (Permutation,)

    def kind(self, scheme: Scheme) -> GPTQGrid:
        grid = stored_grid(scheme.parametrization)
        if grid.bits not in _BITS:
            raise ValueError(f"only 2, 3, 4 and 8 bits can be stored, it has {grid.bits}")
        # The first version has no place for a zero point of 0, which symmetric grids never have.
        version = "gptq" if grid.symmetric else "gptq_v2"
        return GPTQGrid(grid=grid, moving=isinstance(scheme.space, Permutation), version=version)

    def refusal(self, kind: GPTQGrid, rep: Representation) -> str | None:
        return misfit(rep.shape, kind.grid.bits)

    def conflict(self, kinds: Mapping[str, GPTQGrid], dense: Collection[str]) -> str | None:
        alike = {(k.grid.bits, k.grid.group_size, k.grid.symmetric): n for n, k in kinds.items()}
        if len(alike) > 1:
            one, other = list(alike.values())[:2]
            return (
                f"all layers must have the same bits, groups and zero points, {one!r} and "
                f"{other!r} differ"
            )
        if _in_blocks(kinds, dense) is None:
            return "the same layers must be quantized in every block, and none outside of blocks"
        return None

    def settings(self, kinds: Mapping[str, GPTQGrid], dense: Collection[str]) -> dict[str, Any]:
        some = next(iter(kinds.values()))
        found = {
            "bits": some.grid.bits,
            "group_size": some.grid.group_size or -1,
            "sym": some.grid.symmetric,
            "desc_act": any(kind.moving for kind in kinds.values()),
            "checkpoint_format": some.version,
            "lm_head": False,
        }
        names, left = _in_blocks(kinds, dense) or ([], [])
        return {**found, "modules_in_block_to_quantize": [names]} if left else found

    def tensors(self, layer: str, rep: Representation) -> dict[str, Tensor]:
        return write_layer(layer, self.kind(rep.scheme), rep)

    def kind_of(self, settings: Mapping[str, Any], layer: str) -> GPTQGrid:
        bits, size = settings.get("bits"), settings.get("group_size", -1)
        if type(bits) is not int or bits not in _BITS:  # neither true nor 4.0
            raise ValueError(f"bits must be one of {_BITS}, got {bits!r}")
        if isinstance(size, bool) or not isinstance(size, int) or not (size > 0 or size == -1):
            raise ValueError(f"group_size must be a positive integer or -1, got {size!r}")
        for name in ("sym", "desc_act"):
            if not isinstance(settings.get(name, True), bool):
                raise ValueError(f"{name} must be true or false, got {settings[name]!r}")
        if settings.get("dynamic"):
            raise ValueError("dynamic settings, other ones for some layers, are not read")
        grid = StoredGrid(
            bits=bits,
            group_size=None if size == -1 else size,
            symmetric=bool(settings.get("sym", True)),
        )
        version = settings.get("checkpoint_format", "gptq")
        if version not in _VERSIONS:
            raise ValueError(f"checkpoint_format must be one of {_VERSIONS}, got {version!r}")
        return GPTQGrid(grid=grid, moving=bool(settings.get("desc_act")), version=version)

    def representation(
        self, layer: str, kind: GPTQGrid, tensors: Mapping[str, Tensor]
    ) -> Representation:
        return read_layer(layer, kind, tensors)


def _in_blocks(
    kinds: Collection[str], dense: Collection[str]
) -> tuple[list[str], list[str]] | None:
    """Return which layers of every block are quantized and which are dense.

    None if blocks differ, or a quantized layer lies outside of them.
    """
    places = {name: re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name) for name in (*kinds, *dense)}
    lists = {place[1] for name in kinds if (place := places[name]) is not None}
    blocks: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for name, place in places.items():
        if place is not None and place[1] in lists:
            own = blocks.setdefault((place[1], place[2]), (set(), set()))
            own[name not in kinds].add(place[3])
        elif name in kinds:
            return None
    quantized, left = next(iter(blocks.values()))
    if any(found != (quantized, left) for found in blocks.values()):
        return None
    return sorted(quantized), sorted(left)
