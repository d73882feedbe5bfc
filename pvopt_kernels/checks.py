"""Checks of arguments, with errors that name the argument, what is allowed and what was given."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "check_code_range",
    "check_codes",
    "check_floating",
    "check_list",
    "check_same_device",
    "check_shape",
]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CODES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def check_floating(**tensors: Tensor | None) -> None:
    """Refuse tensors that are not float16, bfloat16, float32 or float64.

    Raises:
        TypeError: if one is not.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in FLOATING:
            raise TypeError(f"{name} must be one of {_names(FLOATING)}, got {tensor.dtype}")


def check_codes(**tensors: Tensor | None) -> None:
    """Refuse codes that are not uint8, int8, int16, int32 or int64.

    Raises:
        TypeError: if one is not.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in CODES:
            raise TypeError(f"{name} must be one of {_names(CODES)}, got {tensor.dtype}")


def check_shape(name: str, tensor: Tensor | None, *shape: int | str) -> None:
    """Refuse a tensor of another shape.

    Args:
        name: the argument's name.
        tensor: the argument; None is accepted.
        shape: a number for a size that must be met, a letter for one that is free.

    Raises:
        ValueError: if the number of dimensions or a size differs.
    """
    if tensor is None:
        return
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or want == size
        for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(s) for s in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}")


def check_list(
    name: str, tensors: Sequence[Tensor], count: int, shape: tuple[int, int], device: torch.device
) -> None:
    """Refuse a list of dense tensors that does not belong to a stack.

    Args:
        name: the argument's name.
        tensors: the argument.
        count: weights of the stack.
        shape: of every weight.
        device: of the stack.

    Raises:
        ValueError: if number, shapes or devices do not fit.
        TypeError: if a tensor is not floating.
    """
    if len(tensors) != count:
        raise ValueError(
            f"{name} must have {count} tensors, one for each weight, got {len(tensors)}"
        )
    for i, tensor in enumerate(tensors):
        if tensor.shape != shape or tensor.dtype not in FLOATING or tensor.device != device:
            place = f"{name}[{i}]"
            check_shape(place, tensor, *shape)
            check_floating(**{place: tensor})
            raise ValueError(f"{place} must be on {device} like the others, got {tensor.device}")


def check_same_device(**tensors: Tensor | None) -> None:
    """Refuse tensors on different devices.

    Raises:
        ValueError: if there are two.
    """
    given = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise ValueError(f"all tensors must be on one device, got {listed}")


def check_code_range(
    name: str, codes: Tensor, num_codes: int, read: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Refuse codes out of range if the environment variable ``PVOPT_KERNELS_DEBUG`` is 1.

    Reading the codes waits for the device, so it is off by default; a code that is out of range
    then reads or writes memory of other tensors. Call it where the operation is computed, not where
    it is traced.

    Args:
        name: the argument's name.
        codes: integers.
        num_codes: the codes allowed are ``0 .. num_codes - 1``.
        read: how the operation reads the stored integers; None: as they are.

    Raises:
        IndexError: if a code is out of range.
    """
    if os.environ.get("PVOPT_KERNELS_DEBUG") != "1" or codes.numel() == 0:
        return
    codes = codes if read is None else read(codes)
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= num_codes:
        raise IndexError(f"{name} must be in 0 .. {num_codes - 1}, got {low} .. {high}")
