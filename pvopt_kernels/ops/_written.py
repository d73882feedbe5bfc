"""Tensors that an operation writes to by their addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["mark_written"]


def mark_written(tensors: Sequence[Tensor]) -> None:
    """Tell autograd that tensors have changed: what it had saved of them is not valid any more."""
    torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])
