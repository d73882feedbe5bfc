"""Groups of a list of dense weights by their numbers, on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.reference.gather_groups import gather_groups as in_torch

from ._arrays import MAX_GROUP, compiled, integers
from ._lists import listed

__all__ = ["LEAST", "gather_groups"]

# Groups that make another thread worth its start: each waits for memory once or twice.
LEAST = 1024


def gather_groups(
    targets: Sequence[Tensor], groups: Tensor, out_group: int, in_group: int
) -> Tensor:
    """Return ``[W, n, g]``; see :func:`pvopt_kernels.gather_groups`."""
    group_size = out_group * in_group
    if not (compiled(groups.numel() * group_size) and in_group <= MAX_GROUP):
        return in_torch(targets, groups, out_group, in_group)
    from ._compiled.groups import gather_kernel

    wanted, cols = groups.shape[1], targets[0].shape[1] // in_group
    out = torch.empty(*groups.shape, group_size, dtype=torch.float32)
    for dense in listed(targets):
        numbers, found = integers(groups[dense.part]), out[dense.part].view(-1).numpy()
        arguments = dense.addresses, dense.kind, numbers, wanted, cols, out_group, found
        gather_kernel(in_group)(*arguments, size=len(numbers), least=LEAST)
    return out
