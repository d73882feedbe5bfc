"""Weights of sequences of symbols on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.reference.trellis_decode import trellis_decode as in_torch

from ._arrays import compiled, integers, single

__all__ = ["trellis_decode"]


def trellis_decode(symbols: Tensor, table: Tensor, *, symbol_bits: int) -> Tensor:
    """Return weights ``[n, steps * V]``; see :func:`pvopt_kernels.trellis_decode`."""
    n, steps = symbols.shape
    values = table.shape[1]
    if not compiled(symbols.numel()):
        return in_torch(symbols, table, symbol_bits=symbol_bits)
    from ._compiled.trellis_decode import decode_kernel

    out = torch.empty(n, steps * values)
    state_bits = len(table).bit_length() - 1
    decode_kernel()(
        integers(symbols),
        single(table),
        symbol_bits,
        state_bits,
        values,
        steps,
        out.view(-1).numpy(),
        size=n,
        least=1 + 8192 // steps,
    )
    return out.to(table.dtype)
