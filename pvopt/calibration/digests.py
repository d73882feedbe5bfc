"""Checksums of tensors, by which kept work is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["digest"]


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a checksum of tensors of any dtype.

    Example:
        >>> import torch
        >>> from pvopt.calibration.digests import digest
        >>> one, other = torch.zeros(2), torch.ones(2)
        >>> digest([one, other]) == digest([one, one])
        False
    """
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(plain.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
