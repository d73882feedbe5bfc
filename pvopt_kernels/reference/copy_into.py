"""Tensors copied into others, in one call of torch."""

# torch.optim is built on _foreach_copy_; its name begins with an underscore all the same.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["copy_into"]


def copy_into(outs: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy the tensors; see :func:`pvopt_kernels.copy_into`."""
    if outs:
        torch._foreach_copy_(list(outs), list(sources))
