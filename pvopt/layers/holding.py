"""Tensors of dotted names in modules, so that state dicts show them under these names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["foreign_codes", "held", "hold", "narrowed", "offered"]


def hold(
    module: nn.Module, buffers: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> None:
    """Register tensors; every part of a name but the last is a module.

    Args:
        module: that is to hold them.
        buffers: by dotted name.
        parameters: by dotted name.
    """
    for name, tensor in buffers.items():
        owner, leaf = _place(module, name)
        owner.register_buffer(leaf, tensor)
    for name, tensor in parameters.items():
        owner, leaf = _place(module, name)
        owner.register_parameter(leaf, nn.Parameter(tensor))


def held(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return tensors that a module holds, by dotted name."""
    found = {}
    for name in names:
        *path, leaf = name.split(".")
        owner = module
        for part in path:
            owner = getattr(owner, part)
        found[name] = getattr(owner, leaf)
    return found


def offered(
    own: Mapping[str, Tensor], state_dict: Mapping[str, Any], prefix: str
) -> dict[str, Tensor] | None:
    """Return what a state dict has for tensors of a module, by the module's own names.

    Args:
        own: the present tensors.
        state_dict: what is to be loaded.
        prefix: of the names in it.

    Returns:
        None if a tensor is missing or has another shape: torch says so.

    Raises:
        TypeError: if a tensor has another dtype, which torch would convert.
    """
    found = {}
    for name, tensor in own.items():
        key = prefix + name
        new = state_dict.get(key)
        if not isinstance(new, Tensor) or new.shape != tensor.shape or new.is_meta:
            return None
        if new.dtype != tensor.dtype:
            raise TypeError(f"{key} must be {tensor.dtype}, got {new.dtype}")
        found[name] = new
    return found


@contextmanager
def foreign_codes(prefix: str) -> Iterator[None]:
    """Let a ValueError about codes name the layer whose state dict holds them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"state_dict of {prefix.rstrip('.') or 'the layer'}: {error}") from error


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a dotted name, made where there is none, and the last part."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    return module, leaf


def narrowed(values: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return copies of values in a dtype.

    Args:
        values: by name.
        dtype: None keeps theirs.

    Raises:
        ValueError: if a value is beyond the range of the dtype, or most of what it says is below.
    """
    copies = {n: v.detach().to(dtype or v.dtype, copy=True) for n, v in values.items()}
    for name, value in values.items():
        if dtype is None or not value.numel() or value.is_meta:
            continue
        largest = float(value.detach().abs().max())
        info = torch.finfo(dtype)
        if largest > info.max or 0 < largest < info.tiny:
            raise ValueError(
                f"values {name!r} must be in the range of {dtype}, {info.tiny:g} to {info.max:g}, "
                f"got {largest:g}: keep them in another dtype"
            )
    return copies
