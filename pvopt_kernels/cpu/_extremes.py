"""The largest or the smallest entries of long rows on CPUs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ._arrays import compiled, single

__all__ = ["extremes", "has_extremes"]

# Entries of a sample lie so far apart that 32 of those wanted are in it, but no closer than this:
# odd, so that a sample of a weight's groups meets all of its columns.
_STRIDE = 17
_WANTED = 32


def has_extremes(keys: Tensor, k: int) -> bool:
    """Return whether :func:`extremes` takes some rows, and is worth it."""
    n, m = keys.shape
    long = k >= 32 and m >= 1024
    return long and keys.dtype != torch.float64 and compiled(n * m)


def extremes(keys: Tensor, k: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Return the first entries of each row in sorted order, and where they are; NaN comes last.

    A sample bounds the k-th entry; one pass collects what reaches the bound, which then is sorted.
    Of equal entries the first wins.

    Args:
        keys: ``[n, m]``, in at most single precision.
        k: how many.
        largest: whether the order falls.

    Returns:
        Values and indices (int64), ``[n, k]`` each.
    """
    from ._compiled.extremes import extremes_kernel

    n, m = keys.shape
    rows = single(keys)
    stride = max(_STRIDE, k // _WANTED | 1)
    # Four deviations of how many of the k are in the sample, and as much as a small k needs, let k
    # and few more pass nearly always.
    share = k / stride
    place = min(-(-m // stride) - 1, int(share + 4 * math.sqrt(share) + 4))
    values = torch.empty(n, k, dtype=torch.float32)
    indices = torch.empty(n, k, dtype=torch.int64)
    out = values.view(-1).numpy(), indices.view(-1).numpy()
    kernel = extremes_kernel(largest)
    least = max(1, (1 << 15) // m)
    kernel(rows, rows.view(np.int32), m, k, stride, place, *out, size=n, least=least)
    return values.to(keys.dtype), indices
