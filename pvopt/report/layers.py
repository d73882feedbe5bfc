"""Weights by block and kind of layer, as maps show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["layer_cells", "place_of"]


def place_of(name: str) -> tuple[int | None, str]:
    """Return the number of a weight's block, None outside of blocks, and its kind of layer.

    Example:
        >>> from pvopt.report.layers import place_of
        >>> place_of("model.layers.3.mlp.experts.7.up_proj.weight")
        (3, 'mlp.experts.*.up_proj')
        >>> place_of("lm_head.weight"), place_of("0.weight")
        ((None, 'lm_head'), (0, 'weight'))
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    inside = parts if number is None else parts[number + 1 :]
    if len(inside) > 1 and inside[-1] == "weight":
        inside = inside[:-1]
    kind = ".".join("*" if part.isdecimal() else part for part in inside)
    return (None if number is None else int(parts[number])), kind or name


def layer_cells(
    values: Mapping[str, float], sizes: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return the means of values over the weights of each block and kind.

    Args:
        values: by parameter name.
        sizes: how much each weighs; None for all alike.

    Returns:
        Rows with ``block`` (a number, or a dash outside of blocks), ``kind``, ``value`` and the
        number of ``weights``, in the order of the names.

    Example:
        >>> from pvopt.report.layers import layer_cells
        >>> layer_cells({"h.0.up.weight": 1.0, "h.0.up.bias": 3.0, "head.weight": 5.0})
        [{'block': '0', 'kind': 'up', 'value': 1.0, 'weights': 1}, \
{'block': '0', 'kind': 'up.bias', 'value': 3.0, 'weights': 1}, \
{'block': '–', 'kind': 'head', 'value': 5.0, 'weights': 1}]
    """
    members: dict[tuple[int | None, str], list[str]] = {}
    for name in values:
        members.setdefault(place_of(name), []).append(name)
    cells = []
    for (block, kind), names in members.items():
        weights = [1.0 if sizes is None else sizes[name] for name in names]
        total = sum(values[name] * weight for name, weight in zip(names, weights, strict=True))
        cells.append(
            {
                "block": "–" if block is None else str(block),
                "kind": kind,
                "value": total / (sum(weights) or 1),
                "weights": len(names),
            }
        )
    return cells
