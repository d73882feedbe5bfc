"""Nearest sequences of a trellis on CPUs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.reference.trellis_search import trellis_search as in_torch

from ._arrays import compiled, integers, single

__all__ = ["trellis_search"]

# Errors of a state in a step, about 10 us of work.
_WORTH_A_THREAD = 1 << 16


def trellis_search(
    target: Tensor,
    table: Tensor,
    k: int,
    *,
    symbol_bits: int,
    metric: Tensor | None,
    ends: Tensor | None,
) -> Tensor:
    """Return symbols ``[n, k, steps]``; see :func:`pvopt_kernels.trellis_search`."""
    if k > 1 or not compiled(target.numel() * len(table)):
        return in_torch(target, table, k, symbol_bits=symbol_bits, metric=metric, ends=ends)
    from ._compiled.trellis_search import LANES, trellis_kernel

    n, values = len(target), table.shape[1]
    steps, nodes = target.shape[1] // values, len(table) >> symbol_bits
    symbols = torch.empty(n, 1, steps, dtype=torch.int64)
    either = np.empty(0, np.int64) if ends is None else integers(ends.to(torch.int64))
    kernel = trellis_kernel(symbol_bits, values, min(LANES, nodes))
    kernel(
        single(target),
        np.empty(0, np.float32) if metric is None else single(metric),
        single(table.T),
        either,
        nodes,
        steps,
        symbols.view(-1).numpy(),
        size=n,
        least=-(-_WORTH_A_THREAD // (steps * len(table))),
    )
    return symbols
