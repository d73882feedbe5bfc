"""The table that both kernels for E8P read."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pvopt_kernels.e8p_tables import e8p_absolute

__all__ = ["absolute_table"]


@functools.cache
def absolute_table(device: torch.device) -> Tensor:
    """Return the absolute vectors ``[256, 8]``, float32, once for each device."""
    return e8p_absolute().to(device, torch.float32)
