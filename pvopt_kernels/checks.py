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
    "check_integers",
    "check_list",
    "check_same_device",
    "check_shape",
    "check_tensors",
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
        if tensor is None:
            continue
        check_tensors(**{name: tensor})
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{name} must be one of {_names(FLOATING)}, got {tensor.dtype}")


def check_codes(**tensors: Tensor | None) -> None:
    """Refuse codes that are not uint8, int8, int16, int32 or int64.

    Raises:
        TypeError: if one is not.
    """
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_tensors(**{name: tensor})
        if tensor.dtype not in CODES:
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
        check_tensors(**{f"{name}[{i}]": tensor})
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
    name: str, codes: Tensor, num_codes: int, *, unsigned: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Refuse codes out of range, which would read or write memory of other tensors.

    On a CPU always: it takes some microseconds, and none where the dtype holds no others. Looking
    at codes on a GPU waits for it: there only if the environment variable ``PVOPT_KERNELS_DEBUG``
    is 1. Call it where the operation is computed, not where it is traced.

    Args:
        name: the argument's name.
        codes: integers.
        num_codes: the codes allowed are ``0 .. num_codes - 1``.
        unsigned: how the operation reads int8 and int16 as unsigned; None: it does not.

    Raises:
        IndexError: if a code is out of range.
    """
    on_cpu = codes.device.type == "cpu"
    if codes.numel() == 0 or not (on_cpu or os.environ.get("PVOPT_KERNELS_DEBUG") == "1"):
        return
    bits = 8 * codes.itemsize
    narrow = unsigned is not None and codes.dtype in (torch.int8, torch.int16)
    if (narrow or codes.dtype == torch.uint8) and num_codes >= 1 << bits:
        return
    if unsigned is not None and narrow and num_codes > 1 << (bits - 1):
        codes = unsigned(codes)  # otherwise negative ones are out of range anyway
    if on_cpu:  # NumPy is up to ten times as fast
        array = codes.detach().numpy()
        low, high = int(array.min()), int(array.max())
    else:
        low, high = (int(bound) for bound in codes.aminmax())
    if low < 0 or high >= num_codes:
        raise IndexError(f"{name} must be in 0 .. {num_codes - 1}, got {low} .. {high}")


def check_integers(**values: object) -> None:
    """Refuse what is not an integer; a bool is none.

    Raises:
        TypeError: if one is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
            raise TypeError(f"{name} must be an int, got {value!r}")


def check_tensors(**tensors: object) -> None:
    """Refuse arguments that are no tensors.

    Raises:
        TypeError: if one is not.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {tensor!r}")
