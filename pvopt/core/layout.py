"""How a weight is cut into the groups that share one code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["GroupLayout", "check_divides", "matrix_shape"]


def matrix_shape(shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
    """View any weight shape as a matrix: ``[out, in * kernel...]``; a vector is one row.

    Args:
        shape: shape of a dense weight with at least one dimension.

    Returns:
        Numbers of rows and of columns.

    Raises:
        ValueError: for a scalar or an empty weight.

    Example:
        >>> from pvopt.core.layout import matrix_shape
        >>> matrix_shape((8, 3, 5, 5)), matrix_shape((7,))
        ((8, 75), (1, 7))
    """
    if len(shape) == 0 or math.prod(shape) == 0:
        raise ValueError(f"shape must have at least one element and one dimension, got {shape}")
    if len(shape) == 1:
        return 1, shape[0]
    return shape[0], math.prod(shape[1:])


def check_divides(
    name: str, group: int, shape: tuple[int, ...], *, axis: Literal["rows", "columns"] = "columns"
) -> None:
    """Raise unless groups tile an axis of a weight's matrix.

    Args:
        name: of the setting, for the message.
        group: rows or columns of a group.
        shape: of the dense weight.
        axis: which of the two.

    Raises:
        ValueError: if they do not; the message names sizes that would.

    Example:
        >>> from pvopt.core.layout import check_divides
        >>> check_divides("group_size", 4, (3, 6))
        Traceback (most recent call last):
        ...
        ValueError: group_size=4 does not divide the 6 columns of a weight of shape [3, 6]; \
sizes up to 64 that fit: [1, 2, 3, 6]
    """
    size = matrix_shape(shape)[axis == "columns"]
    if size % group:
        fits = [n for n in range(1, min(size, 64) + 1) if size % n == 0]
        raise ValueError(
            f"{name}={group} does not divide the {size} {axis} of a weight of shape "
            f"{list(shape)}; sizes up to 64 that fit: {fits}"
        )


@dataclass(frozen=True)
class GroupLayout:
    """A weight matrix cut into blocks of ``out_group`` rows by ``in_group`` columns.

    Groups are numbered row by row, ``g = i * cols + j`` for the block in block row ``i`` and
    block column ``j``; inside a group the entries are in row-major order.

    Args:
        shape: shape of the dense weight.
        out_group: rows of the matrix in one group.
        in_group: columns of the matrix in one group.

    Raises:
        ValueError: if the groups do not tile the weight; the message names sizes that would.

    Example:
        >>> from pvopt import GroupLayout
        >>> layout = GroupLayout((4, 6), out_group=2, in_group=3)
        >>> layout.rows, layout.cols, layout.num_groups, layout.group_size
        (2, 2, 4, 6)
    """

    shape: tuple[int, ...]
    out_group: int
    in_group: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        check_divides("out_group", self.out_group, self.shape, axis="rows")
        check_divides("in_group", self.in_group, self.shape)

    @property
    def rows(self) -> int:
        """Number of block rows."""
        return matrix_shape(self.shape)[0] // self.out_group

    @property
    def cols(self) -> int:
        """Number of block columns."""
        return matrix_shape(self.shape)[1] // self.in_group

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return self.rows * self.cols

    @property
    def group_size(self) -> int:
        """Number of weights in one group."""
        return self.out_group * self.in_group

    def split(self, weight: Tensor) -> Tensor:
        """Cut a weight into its groups (a view when ``out_group`` is 1).

        Args:
            weight: ``[*shape]``, any dtype.

        Returns:
            ``[num_groups, group_size]``.

        Example:
            >>> import torch
            >>> from pvopt import GroupLayout
            >>> GroupLayout((2, 4), 2, 2).split(torch.arange(8).view(2, 4)).tolist()
            [[0, 1, 4, 5], [2, 3, 6, 7]]
        """
        if tuple(weight.shape) != self.shape:
            raise ValueError(f"weight must have shape {list(self.shape)}, got {list(weight.shape)}")
        if self.out_group == 1:
            return weight.reshape(self.num_groups, self.group_size)
        blocks = weight.reshape(self.rows, self.out_group, self.cols, self.in_group)
        return blocks.transpose(1, 2).reshape(self.num_groups, self.group_size)

    def merge(self, groups: Tensor) -> Tensor:
        """Put groups back into a dense weight, the inverse of :meth:`split`.

        Args:
            groups: ``[num_groups, group_size]``.

        Returns:
            ``[*shape]``.
        """
        if self.out_group == 1:
            return groups.reshape(self.shape)
        blocks = groups.reshape(self.rows, self.cols, self.out_group, self.in_group)
        return blocks.transpose(1, 2).reshape(self.shape)
