"""Sums by code on CPUs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pvopt_kernels.reference.sum_by_code import sum_by_code as in_torch

from ._arrays import MAX_GROUP, compiled, integers, single

__all__ = ["slabs", "sum_by_code"]


def slabs(work: int, table: int) -> int:
    """Return how many tables of sums to fill and add up, whatever the number of threads.

    Each has one writer, and their number does not depend on the threads: neither does the result.

    Args:
        work: numbers to be summed.
        table: numbers of one table.

    Example:
        >>> from pvopt_kernels.cpu.sum_by_code import slabs
        >>> slabs(110592 * 8, 256 * 8), slabs(1000, 65536 * 8)
        (16, 1)
    """
    return max(1, min(16, work // (4 * table)))  # adding tables up takes at most 1/4 of the work


def sum_by_code(values: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """Return ``[num_codes, g]`` sums; see :func:`pvopt_kernels.sum_by_code`."""
    group_size = values.shape[1]
    if not (compiled(values.numel()) and group_size <= MAX_GROUP):
        return in_torch(values, codes, num_codes)
    from ._compiled.codebook_grad import sums_kernel

    number = slabs(values.numel(), num_codes * group_size)
    source, places = single(values), integers(codes)
    sums = np.zeros((number, num_codes, group_size), np.float32)
    sums_kernel(group_size)(places, num_codes, source, sums.reshape(-1), size=number)
    return torch.from_numpy(sums.sum(0)).to(values.dtype)
