"""Groups written into a list of dense weights by their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pvopt_kernels.reference.scatter_groups import scatter_groups as in_torch

from ._compile_spec import CompileSpec
from ._groups import groups_specs, move_groups
from ._lists import Listed, uniform

__all__ = ["compile_specs", "scatter_groups"]


def scatter_groups(
    outs: Sequence[Tensor], groups: Tensor, rows: Tensor, out_group: int, in_group: int
) -> None:
    """Write the groups; see :func:`pvopt_kernels.scatter_groups`."""
    if not outs:
        return
    # A part of a weight is written: one that the kernel cannot write is better left to torch.
    if not uniform(outs):
        in_torch(outs, groups, rows, out_group, in_group)
        return
    arguments = Listed.of(0, outs), groups.contiguous(), rows.contiguous()
    move_groups(*arguments, out_group, in_group, writes=True)


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    return groups_specs(writes=True)
