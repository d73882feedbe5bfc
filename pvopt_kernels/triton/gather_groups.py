"""Groups of a list of dense weights by their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._compile_spec import CompileSpec
from ._groups import groups_specs, move_groups
from ._lists import listed

__all__ = ["compile_specs", "gather_groups"]


def gather_groups(
    targets: Sequence[Tensor], groups: Tensor, out_group: int, in_group: int
) -> Tensor:
    """Return ``[W, n, g]``; see :func:`pvopt_kernels.gather_groups`."""
    groups = groups.contiguous()
    shape = (*groups.shape, out_group * in_group)
    found = torch.empty(shape, dtype=torch.float32, device=groups.device)
    for dense in listed(targets):
        part = dense.part
        move_groups(dense, groups[part], found[part], out_group, in_group, writes=False)
    return found


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    return groups_specs(writes=False)
