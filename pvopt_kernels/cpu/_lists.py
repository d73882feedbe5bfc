"""Lists of dense tensors as what compiled loops take: the addresses of their data."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Listed", "listed", "readable"]

# What ``_compiled.vectors.read`` takes for them: numba has no type for half precision.
_KINDS = {
    torch.float32: np.empty(0, np.float32),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float16: np.empty(0, np.int16),
}


@dataclass(frozen=True)
class Listed:
    """Contiguous tensors of one dtype.

    Args:
        part: the weights of the stack that they belong to.
        addresses: where their data begins.
        kind: an array of the type as which loops read them.
        tensors: what has to be kept while a loop runs.
    """

    part: slice
    addresses: np.ndarray
    kind: np.ndarray
    tensors: Sequence[Tensor]

    @classmethod
    def of(cls, first: int, tensors: Sequence[Tensor]) -> Listed:
        """Describe tensors that are the weights of a stack from ``first`` on."""
        places = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
        part = slice(first, first + len(tensors))
        return cls(part, places, _KINDS[tensors[0].dtype], tensors)


def listed(tensors: Sequence[Tensor], *, written: bool = False) -> Iterator[Listed]:
    """Return the tensors in one piece if they are contiguous and of one dtype, else one by one.

    One that loops cannot read is copied to float32, and copied back when the next one is asked for
    if it is ``written``.

    Args:
        tensors: floating, of one device.
        written: whether loops write to them; they do not read them then.
    """
    if not tensors:
        return
    if readable(tensors):
        yield Listed.of(0, tensors)
        return
    for w, tensor in enumerate(tensors):
        if _readable(tensor):
            yield Listed.of(w, [tensor])
        elif written:
            memory = torch.empty(tensor.shape, dtype=torch.float32)
            yield Listed.of(w, [memory])
            tensor.copy_(memory)
        else:
            yield Listed.of(w, [tensor.detach().to(torch.float32).contiguous()])


def readable(tensors: Sequence[Tensor]) -> bool:
    """Return whether loops read and write some tensors (at least one) as they are, all together."""
    return all(tensor.dtype == tensors[0].dtype and _readable(tensor) for tensor in tensors)


def _readable(tensor: Tensor) -> bool:
    known = tensor.dtype in _KINDS and (tensor.dtype != torch.float16 or _converts_float16())
    return known and tensor.is_contiguous()


@functools.cache
def _converts_float16() -> bool:
    """Whether there are instructions for it; without, LLVM calls functions that are not there."""
    from ._compiled.machine import host_has

    return host_has("f16c") or platform.machine() in ("aarch64", "arm64")
