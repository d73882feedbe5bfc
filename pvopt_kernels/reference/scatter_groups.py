"""Groups written into a list of dense weights by their numbers, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .gather_groups import blocks_of

__all__ = ["scatter_groups"]


def scatter_groups(
    outs: Sequence[Tensor], groups: Tensor, rows: Tensor, out_group: int, in_group: int
) -> None:
    """Write the groups; see :func:`pvopt_kernels.scatter_groups`."""
    for out, numbers, part in zip(outs, groups, rows, strict=True):
        blocks = blocks_of(out, out_group, in_group)
        cols = max(1, blocks.shape[1])
        values = part.view(-1, out_group, in_group).to(out.dtype)
        blocks[numbers // cols, numbers % cols] = values
