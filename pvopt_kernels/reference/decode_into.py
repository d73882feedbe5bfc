"""Decoding a stack of weights into tensors that are given, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decode import decode

__all__ = ["decode_into"]


def decode_into(
    outs: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> None:
    """Write the dense weights; see :func:`pvopt_kernels.decode_into`."""
    exact = torch.promote_types(codebooks.dtype, torch.float32)
    stack = codes, codebooks.to(exact), scales.to(exact)
    for out, code, books, scale in zip(outs, *stack, strict=True):
        out.copy_(decode(code, books, scale, out_group))
