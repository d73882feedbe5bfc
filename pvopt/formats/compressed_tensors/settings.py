"""The settings of compressed-tensors in ``config.json``: which layer is stored how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pvopt.formats.integer_grids import StoredGrid
from pvopt.selection.fused import FUSED

__all__ = ["grid_of_layer", "quantization_config", "split_apart"]

_FORMAT = "pack-quantized"
# Of a pattern: the time it takes grows with the name's length to this power.
_MOST_STARS = 3


def quantization_config(grids: Mapping[str, StoredGrid], dense: Iterable[str]) -> dict[str, Any]:
    """Return the settings of a model, without ``quant_method``.

    Args:
        grids: how layers are stored, by their names.
        dense: names of the linear layers that are not quantized.
    """
    alike: dict[tuple[Any, ...], list[str]] = {}
    for layer, grid in grids.items():
        alike.setdefault((grid.bits, grid.group_size, grid.symmetric), []).append(layer)
    groups = {}
    for number, ((bits, size, symmetric), layers) in enumerate(alike.items()):
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": symmetric,
            "strategy": "channel" if size is None else "group",
            "group_size": size,
            "dynamic": False,
        }
        targets = ["Linear"] if len(alike) == 1 else layers
        groups[f"group_{number}"] = {"targets": targets, "weights": weights}
    return {
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(dense),
    }


def split_apart(grids: Mapping[str, StoredGrid], dense: Iterable[str]) -> str | None:
    """Return which layers differ although servers join them, or None."""
    kinds: dict[str, Any] = dict.fromkeys(dense, "dense")
    kinds |= {n: (g.bits, g.group_size, g.symmetric) for n, g in grids.items()}
    for name in grids:
        owner, _, leaf = name.rpartition(".")
        for family in FUSED:
            others = [f"{owner}.{other}" for other in family if leaf in family]
            differing = [o for o in others if o in kinds and kinds[o] != kinds[name]]
            if differing:
                return (
                    f"{name!r} and {differing[0]!r} are stored in different ways, and servers join "
                    "them into one layer: give both the same bits and groups"
                )
    return None


def grid_of_layer(config: Any, layer: str) -> StoredGrid:
    """Return how a layer is stored.

    Args:
        config: ``quantization_config`` of a model, whoever wrote it.
        layer: its name.

    Raises:
        ValueError: if no group names the layer, or it is stored in a way that is not read.
    """
    if config.get("format", _FORMAT) != _FORMAT:
        raise ValueError(f"format must be {_FORMAT!r}, got {config.get('format')!r}")
    groups = config.get("config_groups")
    for kind in (True, False):  # names come before classes
        for group in groups.values() if isinstance(groups, Mapping) else ():
            if isinstance(group, Mapping) and _names(group.get("targets"), layer, kind):
                return _grid(group.get("weights"), layer)
    raise ValueError(f"config_groups has none for the layer {layer!r}")


def _names(targets: Any, layer: str, by_name: bool) -> bool:
    """Tell whether targets name a layer, itself or as a linear one."""
    for target in targets if isinstance(targets, list) else ():
        if not isinstance(target, str):
            continue
        if not by_name:
            found = target == "Linear"
        elif target.startswith("re:"):
            found = _pattern(target[3:]).match(layer) is not None
        else:
            found = target == layer
        if found:
            return True
    return False


def _pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of a stranger; refuse one that might take for ever."""
    words = re.fullmatch(r"[\w.*^$\\|()-]{0,200}", text)
    if words is None or ")*" in text or text.count("*") > _MOST_STARS:
        raise ValueError(f"targets must be plain patterns, got {text!r}")
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"targets must be patterns, got {text!r} ({error})") from error


def _grid(weights: Any, layer: str) -> StoredGrid:
    if not isinstance(weights, Mapping):
        raise ValueError(f"the layer {layer!r} has no settings of its weights")
    bits, size = weights.get("num_bits"), weights.get("group_size")
    kind, strategy = weights.get("type", "int"), weights.get("strategy")
    if strategy is None:
        strategy = "group" if isinstance(size, int) and size > 0 else "channel"
    if (
        kind != "int"
        or strategy not in ("group", "channel")
        or weights.get("dynamic") not in (False, None)
        or weights.get("actorder") not in (None, "static", "weight")
    ):
        raise ValueError(
            f"weights of {layer!r} must be static integers by channel or by group of neighbours, "
            f"got {dict(weights)}"
        )
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"num_bits of {layer!r} must be in 2..8, got {bits!r}")
    if strategy == "group" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"group_size of {layer!r} must be a positive integer, got {size!r}")
    if not isinstance(weights.get("symmetric", True), bool):
        raise ValueError(
            f"symmetric of {layer!r} must be true or false, got {weights['symmetric']!r}"
        )
    return StoredGrid(
        bits=bits,
        group_size=size if strategy == "group" else None,
        symmetric=weights.get("symmetric", True),
    )
