"""Saved states of strangers: what would break a later step is refused before anything changes."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .placement import local

__all__ = ["check_base_entries", "check_groups", "check_own_entries", "check_structure"]

_COUNTERS = ("step", "values_step")
_LARGEST = torch.finfo(torch.float32).max
# What optimizers keep of squares is never negative.
_SQUARES = ("sq", "square", "second")


def check_structure(saved: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a state dict is made as torch's are.

    Example:
        >>> from pvopt.engine.state_checks import check_structure
        >>> check_structure({"state": {}, "param_groups": None})
        Traceback (most recent call last):
        ...
        ValueError: state_dict must hold a list 'param_groups', got None
    """
    state, groups = saved.get("state"), saved.get("param_groups")
    if not isinstance(state, Mapping):
        raise ValueError(f"state_dict must hold a mapping 'state', got {state!r}")
    if not isinstance(groups, list | tuple):
        raise ValueError(f"state_dict must hold a list 'param_groups', got {groups!r}")
    for key, entries in state.items():
        if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
            raise ValueError(
                f"state_dict must hold a mapping by names for {key!r}, got {entries!r}"
            )
    seen: set[Any] = set()
    for number, group in enumerate(groups):
        params = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(params, list | tuple):
            raise ValueError(f"param_groups[{number}] must hold a list 'params', got {params!r}")
        twice = [key for key in params if key in seen or params.count(key) > 1]
        if twice:
            raise ValueError(
                f"param_groups[{number}] must name each parameter once, got {twice[0]!r}"
            )
        seen.update(params)
    unknown = [key for key in state if key not in seen]
    if unknown:
        raise ValueError(f"state_dict must name its parameters in a group, got {unknown[0]!r}")


def check_groups(base: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]]) -> None:
    """Raise a ValueError unless the settings of saved groups are of the kind of present ones.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt.engine.state_checks import check_groups
        >>> base = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
        >>> check_groups(base, [{**base.param_groups[0], "lr": float("nan")}])
        Traceback (most recent call last):
        ...
        ValueError: param_groups[0]['lr'] must be a number like 0.1, got nan
    """
    own = base.param_groups
    filled = copy.copy(base)
    # What older releases did not have, an optimizer fills in itself.
    filled.__setstate__({"state": {}, "param_groups": [dict(group) for group in saved]})
    saved = filled.param_groups
    for number, (mine, theirs) in enumerate(zip(own, saved, strict=False)):
        for name, value in mine.items():
            if name in ("params", "param_names") or (
                name in theirs and _alike(value, theirs[name])
            ):
                continue
            shown = repr(theirs[name]) if name in theirs else "nothing"
            raise ValueError(
                f"param_groups[{number}][{name!r}] must be {_kind(value)}, got {shown}"
            )


def check_own_entries(name: str, entries: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Raise a ValueError unless our entries of a weight are finite numbers of the right kind.

    Args:
        name: of the weight, for the message.
        entries: by the names of the weight's state; shapes and integers were checked before.
        dtype: of its values, and so of all that is kept beside them.

    Example:
        >>> import torch
        >>> from pvopt.engine.state_checks import check_own_entries
        >>> bad = {"values.scales": torch.tensor([float("nan")])}
        >>> check_own_entries("0.weight", bad, torch.float32)
        Traceback (most recent call last):
        ...
        ValueError: state_dict must hold finite numbers in values.scales of '0.weight'
    """
    for key, value in entries.items():
        where = f"{key} of {name!r}"
        if key in _COUNTERS and not _is_count(value):
            raise ValueError(f"state_dict must hold a number of steps in {where}, got {value!r}")
        if key == "largest_lr" and not (
            isinstance(value, int | float) and 0 <= float(value) <= _LARGEST
        ):
            raise ValueError(f"state_dict must hold a learning rate in {where}, got {value!r}")
        if not isinstance(value, Tensor) or key in _COUNTERS:
            continue
        if value.is_meta:
            raise ValueError(f"state_dict must hold numbers in {where}, got a meta tensor")
        if not key.startswith(("codes.", "code_step.groups")):  # integers, checked before
            beside = key.startswith(("moments.", "latent"))
            if not value.is_floating_point() or (beside and value.dtype != dtype):
                raise ValueError(f"state_dict must hold {dtype} in {where}, got {value.dtype}")
            _check_numbers(where, key, value)


def check_base_entries(
    base: torch.optim.Optimizer,
    saved: Mapping[int, Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
) -> None:
    """Raise a ValueError unless the saved state of a base optimizer is one that it can go on from.

    What it keeps for each parameter is found out by a step on parameters without memory.

    Args:
        base: the optimizer, which is not changed.
        saved: its entries for each parameter, by the parameter's number; a parameter that has
            taken no step has none.
        groups: the saved settings, which decide what is kept.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt.engine.state_checks import check_base_entries
        >>> base = torch.optim.Adam([nn.Parameter(torch.ones(2))])
        >>> bad = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}
        >>> check_base_entries(base, bad, base.param_groups)
        Traceback (most recent call last):
        ...
        ValueError: state_dict must hold exp_avg for parameter 0 of shape [2], got [3]
    """
    expected = _expected_entries(base, groups)
    for number, entries in saved.items():
        wanted = expected.get(number, {})
        for key, value in entries.items():
            _check_entry(f"{key} for parameter {number}", key, value, wanted.get(key))
        if entries:
            missing = [key for key in wanted if key not in entries]
            if missing:
                raise ValueError(f"state_dict must hold {missing[0]} for parameter {number}")


def _check_entry(where: str, key: str, value: Any, wanted: Any) -> None:
    if key == "step":
        if not _is_count(value, whole=False):
            raise ValueError(f"state_dict must hold a number of steps in {where}, got {value!r}")
        return
    none_yet = value is None and key == "momentum_buffer"  # of SGD, before its first step
    if isinstance(value, Tensor):
        value = local(value)
    if isinstance(wanted, Tensor) and not isinstance(value, Tensor) and not none_yet:
        raise ValueError(f"state_dict must hold a tensor in {where}, got {value!r}")
    if not isinstance(value, Tensor):
        return
    if value.is_meta:
        raise ValueError(f"state_dict must hold numbers in {where}, got a meta tensor")
    if isinstance(wanted, Tensor) and value.shape != wanted.shape:
        raise ValueError(
            f"state_dict must hold {where} of shape {list(wanted.shape)}, got {list(value.shape)}"
        )
    if isinstance(wanted, Tensor) and value.dtype not in (wanted.dtype, *_also(wanted.dtype)):
        raise ValueError(f"state_dict must hold {wanted.dtype} in {where}, got {value.dtype}")
    _check_numbers(where, key, value)


def _also(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Return in which other dtype the state of low-precision weights may be kept."""
    return (torch.float32,) if dtype in (torch.bfloat16, torch.float16) else ()


def _check_numbers(where: str, key: str, value: Tensor) -> None:
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError(f"state_dict must hold finite numbers in {where}")
    if any(word in key for word in _SQUARES) and value.numel() and bool((value < 0).any()):
        raise ValueError(f"state_dict must hold squares in {where}, some are negative")


def _expected_entries(
    base: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]]
) -> dict[int, Mapping[str, Any]]:
    """Return what an optimizer keeps for each parameter, without memory; nothing if unknown."""
    shadows: list[nn.Parameter] = []
    groups = []
    for own, settings in zip(base.param_groups, saved, strict=False):
        here = [nn.Parameter(torch.empty_like(local(p), device="meta")) for p in own["params"]]
        for shadow in here:
            shadow.grad = torch.empty_like(shadow)
        shadows += here
        loops = {name: False for name in ("foreach", "fused", "capturable") if name in own}
        groups.append({**own, **settings, **loops, "params": here})
    probe = copy.copy(base)
    probe.state, probe.param_groups = defaultdict(dict), groups
    # The class's own step: hooks and schedulers of the instance are not to see it. It may ask for
    # numbers that are not there; what it had kept by then is known.
    with contextlib.suppress(Exception):
        getattr(type(probe).step, "__wrapped__", type(probe).step)(probe)
    return {number: dict(probe.state.get(p, {})) for number, p in enumerate(shadows)}


def _is_number(value: Any) -> bool:
    scalar = isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta
    return scalar or (isinstance(value, int | float) and not isinstance(value, bool))


def _alike(mine: Any, theirs: Any) -> bool:
    """Whether a saved setting can stand in the place of a present one."""
    if isinstance(mine, bool):
        return isinstance(theirs, bool)
    if isinstance(mine, list | tuple):
        same = isinstance(theirs, list | tuple) and len(mine) == len(theirs)
        return same and all(map(_alike, mine, theirs))
    if _is_number(mine):
        least = 0.0 if float(mine) >= 0 else -_LARGEST
        return _is_number(theirs) and least <= float(theirs) <= _LARGEST
    return True


def _kind(value: Any) -> str:
    return f"a number like {value}" if _is_number(value) else f"of the kind of {value!r}"


def _is_count(value: Any, *, whole: bool = True) -> bool:
    """Whether a value is a number of steps."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_meta or value.is_complex() or value.dtype == torch.bool:
            return False
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= 0 and (not whole or value == int(value))
