"""Tensors as the flat arrays that compiled loops take."""

from __future__ import annotations

import functools
import importlib.util
import os

import numpy as np
import torch
from torch import Tensor

__all__ = ["MAX_GROUP", "compiled", "integers", "padded_columns", "scratch", "single"]

# Larger groups than this make vectors that no registers hold; torch is near the floor there.
MAX_GROUP = 64

_UNSIGNED = {torch.int8: np.dtype(np.uint8), torch.int16: np.dtype(np.uint16)}


# Smaller work takes torch less than a millisecond or two, while a loop compiles in seconds.
_LEAST_WORK = 1 << 15


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def compiled(work: int) -> bool:
    """Return whether a compiled loop should do some work: there is numba, and it is enough.

    Args:
        work: weights read, or entries compared. ``PVOPT_KERNELS=cpu`` compiles for any amount.
    """
    enough = work >= _LEAST_WORK or (work > 0 and os.environ.get("PVOPT_KERNELS") == "cpu")
    return enough and _has_numba()


def _plain(tensor: Tensor) -> np.ndarray:
    # Operations of torch let go of the interpreter's lock and wait for it again, which a thread
    # that was just started may hold: 27 us on average for a detach. Most tensors need none.
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor if tensor.is_contiguous() else tensor.contiguous()).numpy()


def single(tensor: Tensor) -> np.ndarray:
    """Return floats as a flat float32 array; a view if they are contiguous float32."""
    return _plain(tensor if tensor.dtype == torch.float32 else tensor.to(torch.float32)).reshape(-1)


def scratch(*shape: int) -> np.ndarray:
    """Return float32 memory for as long as an operation takes, or not much longer.

    Tensors begin at multiples of 64 bytes. To find such a place, glibc (2.36) asks for 96 bytes
    more than it then takes; so in the hole that a tensor leaves behind no second one of its size
    fits, and one call after another takes new memory: 15 MB in a step on SmolLM2.
    """
    return np.empty(shape, np.float32)


def integers(tensor: Tensor) -> np.ndarray:
    """Return codes as a flat array, a view if they are contiguous; int8 and int16 as unsigned."""
    array = _plain(tensor).reshape(-1)
    return array.view(_UNSIGNED.get(tensor.dtype, array.dtype))


def padded_columns(books: np.ndarray, lanes: int) -> np.ndarray:
    """Return books ``[..., K, g]`` as ``[..., g, K']``, padded to a multiple by infinity."""
    entries, group_size = books.shape[-2:]
    padded = -(-entries // lanes) * lanes
    columns = np.full((*books.shape[:-2], group_size, padded), np.inf, np.float32)
    columns[..., :entries] = np.swapaxes(books, -1, -2)
    return columns
