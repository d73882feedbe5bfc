"""Groups written into a list of dense weights by their numbers, on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pvopt_kernels.reference.scatter_groups import scatter_groups as in_torch

from ._arrays import MAX_GROUP, compiled, integers, single
from ._lists import Listed, readable
from .gather_groups import LEAST

__all__ = ["scatter_groups"]


def scatter_groups(
    outs: Sequence[Tensor], groups: Tensor, rows: Tensor, out_group: int, in_group: int
) -> None:
    """Write the groups; see :func:`pvopt_kernels.scatter_groups`."""
    # A part of a weight is written: one that loops cannot write is better left to torch.
    if not (compiled(rows.numel()) and in_group <= MAX_GROUP and readable(outs)):
        return in_torch(outs, groups, rows, out_group, in_group)
    from ._compiled.groups import scatter_kernel

    dense, numbers = Listed.of(0, outs), integers(groups)
    wanted, cols = groups.shape[1], outs[0].shape[1] // in_group
    arguments = dense.addresses, dense.kind, numbers, wanted, cols, out_group, single(rows)
    scatter_kernel(in_group)(*arguments, size=len(numbers), least=LEAST)
    return None
