"""Squared norms of the groups of a difference."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import call, implementation

__all__ = ["group_sq_norms"]


def group_sq_norms(
    target: Tensor, weight: Tensor, *, out_group: int = 1, in_group: int = 1
) -> Tensor:
    r"""Return the squared norm of each group of ``target - weight``, in one pass over both.

    .. math:: s_g = \sum_{i \in g} (t_i - w_i)^2

    Args:
        target: ``[rows, columns]``, floating.
        weight: ``[rows, columns]``, floating, perhaps of another dtype.
        out_group: rows of a group; divides ``rows``.
        in_group: columns of a group; divides ``columns``.

    Returns:
        ``[groups]``, row by row, in the wider of the two dtypes and float32.

    Raises:
        ValueError: if shapes or devices differ, or groups do not divide the weight.
        TypeError: if a tensor is not floating.

    Example:
        >>> import torch
        >>> from pvopt_kernels import group_sq_norms
        >>> target = torch.tensor([[3.0, 4.0, 1.0, 1.0]])
        >>> group_sq_norms(target, torch.zeros(1, 4), in_group=2)
        tensor([25.,  2.])
    """
    check_tensors(target=target, weight=weight)
    check_floating(target=target, weight=weight)
    check_shape("weight", weight, "rows", "columns")
    check_shape("target", target, *weight.shape)
    check_same_device(target=target, weight=weight)
    rows, columns = weight.shape
    check_integers(out_group=out_group, in_group=in_group)
    if out_group < 1 or in_group < 1 or rows % out_group or columns % in_group:
        raise ValueError(
            f"out_group and in_group must divide {rows} rows and {columns} columns, "
            f"got {out_group} and {in_group}"
        )
    return call(_op, target, weight, out_group, in_group)


@torch.library.custom_op("pvopt::group_sq_norms", mutates_args=())
def _op(target: Tensor, weight: Tensor, out_group: int, in_group: int) -> Tensor:
    run = implementation("group_sq_norms", weight if weight.dtype.itemsize > 4 else target)
    return run(target, weight, out_group, in_group)


@_op.register_fake
def _fake(target: Tensor, weight: Tensor, out_group: int, in_group: int) -> Tensor:
    exact = torch.promote_types(torch.promote_types(target.dtype, weight.dtype), torch.float32)
    groups = (weight.shape[0] // out_group) * (weight.shape[1] // in_group)
    return weight.new_empty(groups, dtype=exact)
