"""Squared distances of decoded groups to their targets, on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.reference.code_sq_errors import code_sq_errors as in_torch

from ._arrays import MAX_GROUP, compiled, integers, single
from ._threads import for_each_part

__all__ = ["code_sq_errors"]


def code_sq_errors(target: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    """Return ``[G]`` squared errors; see :func:`pvopt_kernels.code_sq_errors`."""
    number, entries, group_size = codebooks.shape
    if not (compiled(target.numel()) and number and group_size <= MAX_GROUP):
        return in_torch(target, codes, codebooks, scales)
    from ._compiled.decode import sq_errors_kernel

    out = torch.empty(len(target), dtype=torch.float32)
    kernel = sq_errors_kernel(group_size, number)
    arrays = integers(codes), single(codebooks), entries, single(scales), len(target) // len(scales)
    goal, errors = single(target), out.numpy()

    def work(start: int, stop: int) -> None:
        kernel(*arrays, goal, errors, start, stop)

    for_each_part(work, len(scales))
    return out
