"""Copies that processes hold of the same thing: whether they still are the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .bindings import Binding
from .consent import any_process
from .exchange import Exchange, Gather, ProcessesError, together

__all__ = ["check_replicas"]

# Bytes that are looked at together, and after how many their weights repeat.
_AT_ONCE, _PERIOD = 1 << 20, 8191
_MODULUS = 1 << 52  # sums are sent as float64


def check_replicas(bindings: Sequence[Binding]) -> None:
    """Raise unless all processes that hold a copy of something hold the same.

    Codes, values, moments and latent weights are compared by a checksum: whole ones, of rows that
    several processes hold, and of what all rows have in common.

    Args:
        bindings: the weights, in the same order in every process.

    Raises:
        ProcessesError: in every process, naming the weights that differ.
    """
    flags = together(map(_differs, bindings))
    channels = [c for binding in bindings for c, _ in binding.placement.copies(binding.state)]
    (found,) = together([any_process(list(dict.fromkeys(channels)), flags)])
    names = [repr(b.name) for b, flag in zip(bindings, found, strict=True) if flag]
    if names:
        raise ProcessesError(
            f"{', '.join(names[:8])}{' ...' if names[8:] else ''}: the processes hold different "
            "codes, values or optimizer states of one weight; seed and load them equally and let "
            "them see the same gradients, or call weights.broadcast_() before the first step"
        )


def _differs(binding: Binding) -> Exchange[bool]:
    differs = False
    for channel, tensors in binding.placement.copies(binding.state):
        own = _checksum(tensors)
        if own is not None:
            every = yield Gather(channel, own)
            differs |= bool((every != every[0]).any())
    return differs


def _checksum(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return a number ``[1]`` that hardly is the same for other tensors; None for no tensors."""
    total = None
    for tensor in tensors:
        entries = tensor.detach().contiguous().view(-1).view(torch.uint8)
        for part in entries.split(_AT_ONCE):
            weights = torch.arange(len(part), device=part.device) % _PERIOD + 1
            own = (part.long() * weights).sum()
            total = own if total is None else (31 * total + own) % _MODULUS
    return None if total is None else total.double()[None]
