"""One state dict of the base optimizer and the quantized weights, lossless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .changes import note_written
from .consent import consent
from .exchange import together
from .load_order import check_places, in_order_of
from .merged_state import PREFIX
from .state_checks import check_base_entries, check_groups, check_own_entries, check_structure
from .writing import write_decoded_

__all__ = ["load_state_dict", "state_dict"]


def _numbered(optimizer: Any) -> dict[int, nn.Parameter]:
    """Return the parameters by their number in a state dict."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return dict(enumerate(parameters))


def state_dict(optimizer: Any) -> dict[str, Any]:
    """Return one state dict of the base optimizer and the quantized weights."""
    for hook in optimizer._optimizer_state_dict_pre_hooks.values():
        hook(optimizer)
    result = optimizer.base.state_dict()
    merged = {number: dict(entries) for number, entries in result["state"].items()}
    bindings = optimizer.bindings_by_id()
    for number, p in _numbered(optimizer).items():
        if id(p) in bindings:
            ours = {PREFIX + key: value for key, value in bindings[id(p)].shown().items()}
            merged.setdefault(number, {}).update(ours)
    result = {**result, "state": merged}
    for hook in optimizer._optimizer_state_dict_post_hooks.values():
        replaced = hook(optimizer, result)
        result = result if replaced is None else replaced
    return result


@torch.no_grad()
def load_state_dict(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Restore base state, representations and decoded weights; check everything first."""
    saved = dict(saved)
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        replaced = hook(optimizer, saved)
        saved = dict(saved if replaced is None else replaced)
    found, error = None, None
    try:
        found = _checked(optimizer, saved)
    except ValueError as wrong:
        error = wrong
    together([consent(optimizer.channels(), error, False)])
    assert found is not None
    ours, theirs, keys = found
    bindings = optimizer.bindings_by_id()
    # Adam counts a parameter with an empty dictionary as initialised: drop those.
    base = {key: entries for key, entries in theirs.items() if entries}
    optimizer.base.load_state_dict({**saved, "state": base})
    for number, p in _numbered(optimizer).items():
        _restore_dtypes(optimizer.base.state.get(p, {}), theirs.get(keys[number], {}))
        if id(p) in bindings:
            binding = bindings[id(p)]
            binding.state.restore(ours[keys[number]])
            write_decoded_(binding.rep, [binding.placement.entries(p)])
            note_written([binding])
            binding.joined = True
    for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        hook(optimizer)


def _checked(
    optimizer: Any, saved: dict[str, Any]
) -> tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]], dict[int, Any]]:
    """Return our entries and the base's by saved key, and the keys by number; change nothing.

    Raises:
        ValueError: if the state is of other parameters or representations.
    """
    check_structure(saved)
    parameters = _numbered(optimizer)
    bindings = optimizer.bindings_by_id()
    saved["param_groups"] = in_order_of(optimizer.param_groups, saved["param_groups"])
    # Parameters correspond by their place in the groups. What the saved groups call them is free:
    # numbers in torch's own state dicts, names in those of torch.distributed.checkpoint.
    saved_keys = [key for group in saved["param_groups"] for key in group["params"]]
    keys = dict(zip(parameters, saved_keys, strict=False))  # the base refuses another number
    ours: dict[int | str, dict[str, Any]] = {}
    theirs: dict[int | str, dict[str, Any]] = {}
    for key, entries in saved["state"].items():
        ours[key] = {k[len(PREFIX) :]: v for k, v in entries.items() if k.startswith(PREFIX)}
        theirs[key] = {k: v for k, v in entries.items() if not k.startswith(PREFIX)}
    for number, p in parameters.items():
        if id(p) in bindings:
            binding = bindings[id(p)]
            own = binding.taken(ours.get(keys.get(number, -1), {}))
            binding.state.check(binding.name, own, binding.placement.num_groups(binding.rep))
            ours[keys[number]] = own
            check_own_entries(binding.name, ours[keys[number]], binding.rep.dtype)
    check_places(
        [
            (bindings[id(p)].state, ours[keys[number]])
            for number, p in parameters.items()
            if id(p) in bindings
        ]
    )
    check_groups(optimizer.base, saved["param_groups"])
    by_number = {number: theirs.get(keys.get(number, -1), {}) for number in parameters}
    check_base_entries(optimizer.base, by_number, saved["param_groups"])
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        optimizer._settings({**group, "params": own["params"]})
    return ours, theirs, keys


def _restore_dtypes(state: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Undo the cast of floating state to the dtype of a parameter that is less precise."""
    for key, value in saved.items():
        if isinstance(value, Tensor) and state[key].dtype != value.dtype:
            state[key] = value.to(device=state[key].device, copy=True)
