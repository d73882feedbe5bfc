"""Which saved parameter is which: by names where both sides have them, else by place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .state import WeightState

__all__ = ["check_places", "in_order_of"]

# Wrappers put these before or between the parts of a name.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def in_order_of(
    groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Put saved groups into the order of the present parameters.

    Args:
        groups: present parameter groups.
        saved: of a state dict.

    Returns:
        The saved groups; where both sides have ``param_names``, ``params`` are in our order.

    Raises:
        ValueError: if the names differ in more than their order and the wrappers of a model.

    Example:
        >>> from pvopt.engine.load_order import in_order_of
        >>> own = [{"params": [0, 1], "param_names": ["a", "b"]}]
        >>> in_order_of(own, [{"params": [0, 1], "param_names": ["module.b", "module.a"]}])
        [{'params': [1, 0], 'param_names': ['a', 'b']}]
    """
    result = [dict(group) for group in saved]
    for number, (group, new) in enumerate(zip(groups, result, strict=False)):
        names, theirs = group.get("param_names"), new.get("param_names")
        if not names or not theirs or len(names) != len(theirs):
            continue
        found = {_plain(name): key for name, key in zip(theirs, new["params"], strict=True)}
        missing = [name for name in names if _plain(name) not in found]
        if missing or len(found) < len(names):
            raise ValueError(
                f"group {number} of state_dict holds other parameters than the optimizer: "
                f"{missing[:8]} are not among {theirs[:8]}; without 'param_names' in its groups, "
                "parameters are matched by their place"
            )
        new["params"] = [found[_plain(name)] for name in names]
        new["param_names"] = names
    return result


def check_places(weights: Sequence[tuple[WeightState, Mapping[str, Any]]]) -> None:
    """Raise a ValueError if a weight would get the codes of another one of the optimizer.

    Args:
        weights: the state of each, and what was saved in its place.
    """
    own = {state["name"] for state, _ in weights}
    for state, saved in weights:
        found = saved.get("name", state["name"])
        try:
            place = int(found)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"state_dict must hold the checksum of a name in 'name', got {found!r}"
            ) from error
        if place != state["name"] and place in own:
            raise ValueError(
                "state_dict holds the quantized weights in another order; give the base optimizers "
                "named_parameters(), so that they are matched by name, or the same order"
            )
