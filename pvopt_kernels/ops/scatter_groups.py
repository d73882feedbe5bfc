"""Groups written into a list of dense weights by their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import check_floating, check_same_device, check_shape, check_tensors
from pvopt_kernels.dispatch import call, implementation

from ._written import mark_written
from .gather_groups import check_group_values, check_groups

__all__ = ["scatter_groups"]


def scatter_groups(
    outs: Sequence[Tensor],
    groups: Tensor,
    rows: Tensor,
    *,
    out_group: int = 1,
    in_group: int = 1,
) -> None:
    r"""Write some groups of each of several dense weights of one shape, and leave the others.

    The inverse of :func:`gather_groups`; entries are rounded once, to each tensor's own dtype.

    Args:
        outs: ``W`` tensors ``[rows * out_group, cols * in_group]``, floating, of any layout; no two
            may share memory.
        groups: ``[W, n]`` int64, numbers of groups in each weight, no number twice.
        rows: ``[W, n, out_group * in_group]``, floating.
        out_group: rows of a group.
        in_group: columns of a group.

    Raises:
        ValueError: if numbers, shapes or devices do not fit, or groups do not divide the weights.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import scatter_groups
        >>> out = torch.zeros(2, 4)
        >>> rows = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
        >>> scatter_groups([out], torch.tensor([[1]]), rows, out_group=2, in_group=2)
        >>> out
        tensor([[0., 0., 1., 2.],
                [0., 0., 3., 4.]])
    """
    outs = list(outs)
    check_groups("outs", outs, groups, out_group, in_group)
    check_tensors(rows=rows)
    check_floating(rows=rows)
    check_shape("rows", rows, *groups.shape, out_group * in_group)
    check_same_device(rows=rows, groups=groups)
    call(_op, outs, groups, rows, out_group, in_group)


@torch.library.custom_op("pvopt::scatter_groups", mutates_args={"outs"})
def _op(outs: list[Tensor], groups: Tensor, rows: Tensor, out_group: int, in_group: int) -> None:
    check_group_values(outs, groups, out_group, in_group)
    implementation("scatter_groups", rows)(outs, groups, rows, out_group, in_group)
    mark_written(outs)


@_op.register_fake
def _fake(outs: list[Tensor], groups: Tensor, rows: Tensor, out_group: int, in_group: int) -> None:
    return None
