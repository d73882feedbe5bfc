"""What PVOptimizer keeps per parameter, and how it is saved and restored losslessly."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .group_settings import GroupSettings
from pvopt.parametrizations.representation import Representation
from pvopt.rules.value_optimizers import ValueOptimizer

if TYPE_CHECKING:
    from pvopt.optimizer import PVOptimizer

__all__ = ["ensure", "ensure_latent", "generator", "load_state_dict", "state_dict"]

# Marks our entries beside the base optimizer's in one flat dictionary per parameter.
_PREFIX = "pv."


def ensure(state: dict[str, Any], rep: Representation, values: ValueOptimizer) -> dict[str, Any]:
    """Complete a parameter's state: counters, moments, and the representation's own tensors.

    Args:
        state: ``optimizer.state[parameter]``, completed in place.
        rep: the parameter's representation; its tensors are shared with the state.
        values: says which moments are needed.

    Returns:
        The state.
    """
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.int64)
        state["values_step"] = torch.zeros((), dtype=torch.int64)
    for name, value in rep.values.items():
        for moment in values.moments:  # also after loading a state of other moments
            if f"values.{name}.{moment}" not in state:
                state[f"values.{name}.{moment}"] = torch.zeros_like(value)
    state.update(rep.tensors())
    return state


def ensure_latent(state: dict[str, Any], rep: Representation) -> Tensor:
    """Return the latent weight ``[*shape]``, at first the decoded weight."""
    if "latent" not in state:
        state["latent"] = rep.decode()
    return state["latent"]


def generator(seed: int, name: str, step: int, device: torch.device) -> torch.Generator:
    """Return a generator that depends on its arguments only.

    The draws of a step need no stored generator, do not depend on which other parameters had a
    gradient, and are the same on every rank.

    Args:
        seed: of the parameter group.
        name: of the parameter.
        step: number of steps the parameter has taken.
        device: where the draws are made.

    Example:
        >>> cpu = torch.device("cpu")
        >>> a, b = (generator(0, "w", step, cpu).initial_seed() for step in (3, 4))
        >>> a == b
        False
    """
    key = f"{seed}/{name}/{step}".encode()
    # Two checksums of different text make 63 bits; manual_seed mixes them further.
    mixed = (zlib.crc32(key) << 31) ^ zlib.crc32(key[::-1] + b"#")
    return torch.Generator(device).manual_seed(mixed)


def _numbered(optimizer: PVOptimizer) -> dict[int, nn.Parameter]:
    """Return the parameters by their number in a state dict."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return dict(enumerate(parameters))


def _quantized(optimizer: PVOptimizer) -> dict[int, tuple[str, Representation]]:
    """Return name and representation of each quantized parameter in the groups, by ``id``."""
    return {id(p): (name, rep) for name, p, rep in optimizer.named_representations()}


def state_dict(optimizer: PVOptimizer) -> dict[str, Any]:
    """Return one state dict of the base optimizer and the quantized weights."""
    for hook in optimizer._optimizer_state_dict_pre_hooks.values():
        hook(optimizer)
    result = optimizer.base.state_dict()
    merged = {number: dict(entries) for number, entries in result["state"].items()}
    quantized = _quantized(optimizer)
    for number, p in _numbered(optimizer).items():
        if id(p) in quantized:
            state = ensure(optimizer.state[p], quantized[id(p)][1], optimizer.values)
            ours = {_PREFIX + key: value for key, value in state.items()}
            merged.setdefault(number, {}).update(ours)
    result = {**result, "state": merged}
    for hook in optimizer._optimizer_state_dict_post_hooks.values():
        replaced = hook(optimizer, result)
        result = result if replaced is None else replaced
    return result


@torch.no_grad()
def load_state_dict(optimizer: PVOptimizer, saved: Mapping[str, Any]) -> None:
    """Restore base state, representations and decoded weights; check everything first."""
    saved = dict(saved)
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        replaced = hook(optimizer, saved)
        saved = saved if replaced is None else replaced
    parameters = _numbered(optimizer)
    quantized = _quantized(optimizer)
    # Parameters correspond by their place in the groups. What the saved groups call them is free:
    # numbers in torch's own state dicts, names in those of torch.distributed.checkpoint.
    saved_keys = [key for group in saved["param_groups"] for key in group["params"]]
    keys = dict(zip(parameters, saved_keys, strict=False))  # the base refuses another number
    ours: dict[int | str, dict[str, Any]] = {}
    theirs: dict[int | str, dict[str, Any]] = {}
    for key, entries in saved["state"].items():
        ours[key] = {k[len(_PREFIX) :]: v for k, v in entries.items() if k.startswith(_PREFIX)}
        theirs[key] = {k: v for k, v in entries.items() if not k.startswith(_PREFIX)}
    for number, p in parameters.items():
        if id(p) in quantized:
            _check(*quantized[id(p)], ours.get(keys.get(number, -1), {}))
    for group in saved["param_groups"]:
        GroupSettings.of(group, optimizer._default_settings, optimizer.subspace)
    # Adam counts a parameter with an empty dictionary as initialised: drop those.
    base = {key: entries for key, entries in theirs.items() if entries}
    optimizer.base.load_state_dict({**saved, "state": base})
    for number, p in _numbered(optimizer).items():
        _restore_dtypes(optimizer.base.state.get(p, {}), theirs.get(keys[number], {}))
        if id(p) in quantized:
            rep = quantized[id(p)][1]
            _restore(optimizer.state[p], rep, ours[keys[number]], optimizer.values)
            p.copy_(rep.decode())
    for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        hook(optimizer)


def _check(name: str, rep: Representation, saved: Mapping[str, Any]) -> None:
    for key, tensor in rep.tensors():
        found = saved.get(key)
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else found
            raise ValueError(
                f"state_dict must hold {key} of shape {list(tensor.shape)} for {name!r} "
                f"({rep.parametrization}), got {shape}"
            )
    codes = saved["codes"]
    if codes.is_floating_point():
        raise ValueError(f"state_dict must hold integer codes for {name!r}, got {codes.dtype}")
    try:
        rep.parametrization.check_codes(codes, rep.shape)
    except ValueError as error:
        message = f"state_dict must hold codes for {name!r} of {rep.parametrization}: {error}"
        raise ValueError(message) from error


def _restore_dtypes(state: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Undo the cast of floating state to the dtype of a parameter that is less precise."""
    for key, value in saved.items():
        if isinstance(value, Tensor) and state[key].dtype != value.dtype:
            state[key] = value.to(device=state[key].device, copy=True)


def _restore(
    state: dict[str, Any], rep: Representation, saved: Mapping[str, Any], values: ValueOptimizer
) -> None:
    """Overwrite a parameter's state; the representation's tensors keep their identity."""
    own = dict(rep.tensors())
    for key, tensor in own.items():
        tensor.copy_(saved[key])
    state.clear()
    for key, value in saved.items():
        if key in own:
            continue
        on_cpu = key in ("step", "values_step")
        device = "cpu" if on_cpu else rep.codes.device
        state[key] = value.to(device=device, copy=True) if isinstance(value, Tensor) else value
    ensure(state, rep, values)
