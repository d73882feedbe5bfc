"""Lists of dense tensors as what kernels take: a tensor of addresses."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

__all__ = ["Listed", "kind_of", "listed", "uniform"]

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_SPECS = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
_ALIGNMENT = 16


@dataclass(frozen=True)
class Listed:
    """Contiguous tensors of one dtype.

    Args:
        part: the weights of the stack that they belong to.
        addresses: where their data begins, int64 on their device.
        kind: ``KIND`` of the kernels, see ``_tiles.dense_of``.
        tensors: what has to be kept until the kernel is launched.
    """

    part: slice
    addresses: Tensor
    kind: tuple[Any, bool]
    tensors: Sequence[Tensor]

    @classmethod
    def of(cls, first: int, tensors: Sequence[Tensor]) -> Listed:
        """Describe tensors that are the weights of a stack from ``first`` on."""
        places = tuple(tensor.data_ptr() for tensor in tensors)
        aligned = all(place % _ALIGNMENT == 0 for place in places)
        device = tensors[0].device
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        _, addresses = _addresses(places, device, stream)
        part = slice(first, first + len(tensors))
        return cls(part, addresses, (_TYPES[tensors[0].dtype], aligned), tensors)


@functools.lru_cache(maxsize=64)
def _addresses(places: tuple[int, ...], device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """Return addresses on the host and on the device, without waiting for it.

    Parameters stay where they are, and their gradients mostly too. What was copied for one stream
    is only used there, in the order of its work; the host's memory is kept for a captured graph,
    which copies again.
    """
    host = torch.tensor(places, dtype=torch.int64)
    if device.type == "cpu":
        return host, host
    host = host.pin_memory()
    return host, host.to(device, non_blocking=True)


def kind_of(dtype: str) -> tuple[Any, bool]:
    """Return ``KIND`` by the name of a type in the specs of the compiled variants."""
    return _SPECS[dtype], True


def uniform(tensors: Sequence[Tensor]) -> bool:
    """Return whether a kernel can take some tensors (at least one) as they are."""
    dtype = tensors[0].dtype
    return dtype in _TYPES and all(t.dtype == dtype and t.is_contiguous() for t in tensors)


def listed(tensors: Sequence[Tensor], *, written: bool = False) -> Iterator[Listed]:
    """Return the tensors in one piece if they are contiguous and of one dtype, else one by one.

    One that kernels cannot read is copied to float32, and copied back when the next one is asked
    for if it is ``written``.

    Args:
        tensors: floating, of one device.
        written: whether kernels write to them; they do not read them then.
    """
    if not tensors:
        return
    if uniform(tensors):
        yield Listed.of(0, tensors)
        return
    for w, tensor in enumerate(tensors):
        if uniform([tensor]):
            yield Listed.of(w, [tensor])
        elif written:
            memory = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
            yield Listed.of(w, [memory])
            tensor.copy_(memory)
        else:
            yield Listed.of(w, [tensor.detach().to(torch.float32).contiguous()])
