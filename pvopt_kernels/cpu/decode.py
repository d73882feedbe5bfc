"""Dense weights from codes on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.reference.decode import decode as in_torch

from ._arrays import MAX_GROUP, compiled
from ._lists import Listed
from .decode_into import decode_listed

__all__ = ["decode"]


def decode(
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    memory: Tensor | None = None,
) -> Tensor:
    """Return the dense weight; see :func:`pvopt_kernels.decode`.

    The result may be in ``memory``, of as many float32 entries and contiguous, if that is given.
    """
    group_size = codebooks.shape[2]
    if not (compiled(codes.shape[0] * codes.shape[1] * group_size) and group_size <= MAX_GROUP):
        return in_torch(codes, codebooks, scales, out_group)
    rows, cols, _ = codes.shape
    shape = rows * out_group, cols * group_size // out_group
    dtype = codebooks.dtype if memory is None else torch.float32
    dense = torch.empty(shape, dtype=torch.float32) if memory is None else memory.view(shape)
    decode_listed(Listed.of(0, [dense]), codes[None], codebooks[None], scales[None], out_group)
    return dense.to(dtype)
