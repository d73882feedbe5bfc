"""Groups of a list of dense weights by their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_code_range,
    check_integers,
    check_list,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import call, implementation

__all__ = ["check_group_values", "check_groups", "gather_groups"]


def gather_groups(
    targets: Sequence[Tensor], groups: Tensor, *, out_group: int = 1, in_group: int = 1
) -> Tensor:
    r"""Return some groups of each of several dense weights of one shape.

    Group ``i * cols + j`` is the block of ``out_group`` rows and ``in_group`` columns in block row
    ``i`` and block column ``j``, its entries in row-major order.

    Args:
        targets: ``W`` tensors ``[rows * out_group, cols * in_group]``, floating, of any layout.
        groups: ``[W, n]`` int64, numbers of groups in each weight, in any order.
        out_group: rows of a group.
        in_group: columns of a group.

    Returns:
        ``[W, n, out_group * in_group]`` in the widest of the targets' dtypes and float32.

    Raises:
        ValueError: if numbers, shapes or devices do not fit, or groups do not divide the weights.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import gather_groups
        >>> target = torch.arange(8.0).view(2, 4)
        >>> gather_groups([target], torch.tensor([[1, 0]]), out_group=2, in_group=2)
        tensor([[[2., 3., 6., 7.],
                 [0., 1., 4., 5.]]])
    """
    targets = list(targets)
    check_groups("targets", targets, groups, out_group, in_group)
    return call(_op, targets, groups, out_group, in_group)


def check_groups(
    name: str, tensors: list[Tensor], groups: Tensor, out_group: int, in_group: int
) -> None:
    """Check dense weights and numbers of groups in them.

    Raises:
        ValueError: if numbers, shapes or devices do not fit, or groups do not divide the weights.
        TypeError: if a dtype does not.
    """
    check_tensors(groups=groups, **{f"{name}[{i}]": t for i, t in enumerate(tensors)})
    check_integers(out_group=out_group, in_group=in_group)
    check_shape("groups", groups, "W", "n")
    if groups.dtype != torch.int64:
        raise TypeError(f"groups must be int64, got {groups.dtype}")
    if not tensors:
        check_shape("groups", groups, 0, "n")
        return
    check_shape(f"{name}[0]", tensors[0], "rows", "columns")
    rows, columns = tensors[0].shape
    check_list(name, tensors, len(groups), (rows, columns), groups.device)
    if out_group < 1 or in_group < 1 or rows % out_group or columns % in_group:
        raise ValueError(
            f"out_group and in_group must divide {rows} rows and {columns} columns, "
            f"got {out_group} and {in_group}"
        )


def check_group_values(
    tensors: list[Tensor], groups: Tensor, out_group: int, in_group: int
) -> None:
    """Refuse numbers of groups that there are not (see ``check_code_range``)."""
    if tensors:
        check_code_range("groups", groups, tensors[0].numel() // (out_group * in_group))


@torch.library.custom_op("pvopt::gather_groups", mutates_args=())
def _op(targets: list[Tensor], groups: Tensor, out_group: int, in_group: int) -> Tensor:
    check_group_values(targets, groups, out_group, in_group)
    wide = groups.new_empty(0, dtype=_exact(targets))
    return implementation("gather_groups", wide)(targets, groups, out_group, in_group)


@_op.register_fake
def _fake(targets: list[Tensor], groups: Tensor, out_group: int, in_group: int) -> Tensor:
    return groups.new_empty(*groups.shape, out_group * in_group, dtype=_exact(targets))


def _exact(targets: list[Tensor]) -> torch.dtype:
    """Return the widest of the dtypes and float32."""
    wide = any(t.dtype == torch.float64 for t in targets)
    return torch.float64 if wide else torch.float32
