"""Dense weights from codes on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.reference.decode import decode as in_torch

from ._arrays import MAX_GROUP, compiled, integers, single

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
    number, entries, group_size = codebooks.shape
    if not (compiled(codes.shape[0] * codes.shape[1] * group_size) and group_size <= MAX_GROUP):
        return in_torch(codes, codebooks, scales, out_group)
    from ._compiled.decode import decode_kernel

    rows, cols, _ = codes.shape
    if memory is None:
        memory = torch.empty(rows * cols * group_size)
    dense = memory.view(rows, cols * group_size)
    kernel = decode_kernel(group_size, number)
    per_scale = cols // scales.shape[1]
    arrays = integers(codes), single(codebooks), entries, single(scales), per_scale
    out = dense.view(-1).numpy()
    # 8192 groups take 18 us on one thread and on two, 16384 take 33 and 20.
    kernel(*arrays, out, size=scales.numel(), least=max(1, 4096 // per_scale))
    if out_group > 1:
        blocks = dense.view(rows, cols, out_group, group_size // out_group)
        dense = blocks.transpose(1, 2).reshape(rows * out_group, -1)
    return dense.to(codebooks.dtype)
