"""A metric that all rows of a weight share: X'X of a layer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, matrix_shape
from pvopt.core.validation import check_number

from .block import Block
from .contract import GroupCosts, GroupMetric, Metric

__all__ = ["ColumnCosts", "Row", "check_hessian"]


def check_hessian(name: str, matrix: Tensor) -> None:
    """Raise unless a matrix can be ``X'X``: the one place where that is checked.

    Args:
        name: of the argument, for the message.
        matrix: to be checked.

    Raises:
        TypeError: if it is not floating.
        ValueError: if it is not square, finite and symmetric, or its diagonal is negative.
    """
    if not matrix.is_floating_point():
        raise TypeError(f"{name} must be floating, got {matrix.dtype}")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got shape {list(matrix.shape)}")
    if matrix.is_meta:
        return
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    if bool((matrix.diagonal() < 0).any()):
        raise ValueError(f"{name} must have a non-negative diagonal, got a negative entry")
    if len(matrix) and bool((matrix - matrix.T).abs().max() > 1e-3 * matrix.diagonal().max()):
        raise ValueError(f"{name} must be symmetric, got entries that differ by over 0.1 %")


@dataclass(frozen=True, eq=False)
class Row(Metric):
    r"""A metric between weights that couples the columns of each row alike.

    .. math:: \|W\|_H^2 = \mathrm{tr}\, W H W' = \|X W'\|_F^2 \quad \text{for } H = X'X

    Args:
        hessian: ``[columns, columns]`` symmetric positive semidefinite ``H``, floating. Any
            positive multiple makes the same codes near.

    Raises:
        TypeError: if the matrix is not floating.
        ValueError: if it is not square, finite and symmetric, or its diagonal is negative.

    Example:
        >>> import torch
        >>> from pvopt import Row
        >>> inputs = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        >>> Row(inputs.T @ inputs).squared_norm(torch.tensor([[1.0, 2.0]]))
        tensor(10.)

    References:
        GPTQ (arXiv 2210.17323), section 3; AQLM (arXiv 2401.06118), section 3.2.
    """

    hessian: Tensor

    def __post_init__(self) -> None:
        check_hessian("hessian", self.hessian)

    def check(self, shape: tuple[int, ...]) -> None:
        columns = matrix_shape(shape)[1]
        if len(self.hessian) != columns:
            raise ValueError(
                f"hessian must have shape [{columns}, {columns}] for a weight of shape "
                f"{list(shape)}, got {list(self.hessian.shape)}"
            )

    def squared_norm(self, weight: Tensor) -> Tensor:
        rows = weight.reshape(matrix_shape(weight.shape))
        return ((rows @ self.hessian.to(rows)) * rows).sum()

    def diagonal(self, shape: tuple[int, ...]) -> Tensor:
        self.check(shape)
        return self.hessian.diagonal().expand(matrix_shape(shape)).reshape(shape)

    def costs(self, layout: GroupLayout, like: Tensor) -> ColumnCosts:
        self.check(layout.shape)
        return ColumnCosts(layout, self.hessian.to(like))

    def permuted(self, order: Tensor, shape: tuple[int, ...]) -> Row:
        self.check(shape)
        return Row(self.hessian.index_select(0, order).index_select(1, order))

    def scaled(self, rows: Tensor | None, columns: Tensor | None, shape: tuple[int, ...]) -> Row:
        self.check(shape)
        if rows is not None:
            raise TypeError(
                "a metric that all rows share takes no scales of rows: rows would differ. Scale "
                "the columns alone, or use a diagonal metric"
            )
        if columns is None:
            return self
        scale = columns.to(self.hessian.device)
        return Row(self.hessian * scale * scale[:, None])

    def rotated(self, rotate: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Row:
        self.check(shape)
        rotated = rotate(rotate(self.hessian).T.contiguous())
        return Row((rotated + rotated.T) / 2)

    def padded(self, shape: tuple[int, ...], inner: tuple[int, int]) -> Row:
        self.check(shape)
        more = inner[1] - matrix_shape(shape)[1]
        return Row(torch.nn.functional.pad(self.hessian, (0, more, 0, more)))

    def damped(self, fraction: float) -> Row:
        r"""Add a fraction of the mean diagonal to the diagonal, so that it can be inverted.

        .. math:: H + \lambda I, \qquad \lambda = \text{fraction} \cdot \frac1n \mathrm{tr}\, H

        Args:
            fraction: at least 0.

        Returns:
            A damped copy; the identity where the Hessian is zero, which has nothing to be a
            fraction of.

        Raises:
            ValueError: if the fraction is negative.

        Example:
            >>> import torch
            >>> from pvopt import Row
            >>> Row(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).damped(0.5).hessian
            tensor([[3., 1.],
                    [1., 3.]])

        References:
            GPTQ (arXiv 2210.17323), section 3.3, step 3.
        """
        check_number("fraction", fraction, 0.0)
        hessian = self.hessian.clone()
        mean = hessian.diagonal().mean()
        hessian.diagonal().add_(torch.where(mean > 0, fraction * mean, 1.0))
        return Row(hessian)

    def normalized(self) -> Row:
        mean = self.hessian.diagonal().mean()
        return Row(
            self.hessian / mean if mean > 0 else torch.eye(len(self.hessian)).to(self.hessian)
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Row:
        return Row(self.hessian.to(device=device, dtype=dtype))


class ColumnCosts(GroupCosts):
    r"""Costs in a metric of the rows, block column by block column.

    With the error :math:`E = W_q - W` of all groups, the error as a function of one group
    :math:`c` in block column :math:`j`, everything else fixed, is up to a constant

    .. math:: \|c - t\|_{H_{jj}}^2, \qquad t = w_j - (E H)_j\, H_{jj}^{-1}

    the exact block target: the part that the group itself must make up for the errors of the rest
    of its row. All rows of a column are independent, so they are searched at once.

    Args:
        layout: of the weight.
        hessian: ``[columns, columns]``.
    """

    coupled = True

    def __init__(self, layout: GroupLayout, hessian: Tensor) -> None:
        self.layout = layout
        self.hessian = hessian
        self._blocks: dict[int, Block] = {}

    def _block(self, column: int) -> Block:
        """Return the metric of the columns of a block column."""
        if column not in self._blocks:
            here = self._slice(column)
            self._blocks[column] = Block(self.hessian[here, here])
        return self._blocks[column]

    def _slice(self, column: int) -> slice:
        width = self.layout.in_group
        return slice(column * width, (column + 1) * width)

    def _by_rows(self, error: Tensor) -> Tensor:
        """Return the rows of the weight, ``[rows, out_group, columns]``, contiguous."""
        layout = self.layout
        blocks = error.view(layout.rows, layout.cols, layout.out_group, layout.in_group)
        return blocks.transpose(1, 2).reshape(layout.rows, layout.out_group, -1)

    def rounds(self, groups: Tensor) -> Sequence[tuple[int, Tensor | slice]]:
        columns = groups % self.layout.cols
        order = columns.argsort(stable=True)
        present, counts = columns[order].unique_consecutive(return_counts=True)
        return list(zip(present.tolist(), order.split(counts.tolist()), strict=True))

    def goal(
        self, number: int, groups: Tensor, target: Tensor, decoded: Tensor, error: Tensor
    ) -> tuple[Tensor, GroupMetric | None]:
        block = self._block(number)
        layout, here = self.layout, self.hessian[:, self._slice(number)]
        index = groups.div(layout.cols, rounding_mode="floor")
        rows = self._by_rows(error)
        if len(groups) == layout.rows:  # every row: the errors need no copy
            slope = (rows.flatten(0, 1) @ here).view(layout.rows, -1, layout.in_group)[index]
        else:
            slope = rows[index] @ here
        shift = (slope @ block.inverse).flatten(1)
        return decoded.index_select(0, groups) - shift, block

    def squared_norms(self, vectors: Tensor, groups: Tensor | None = None) -> Tensor:
        layout = self.layout
        if groups is None:
            groups = torch.arange(layout.num_groups, device=vectors.device)
        starts = range(0, layout.cols * layout.in_group, layout.in_group)
        blocks = torch.stack(
            [self.hessian[i : i + layout.in_group, i : i + layout.in_group] for i in starts]
        )
        rows = vectors.view(len(vectors), layout.out_group, layout.in_group)
        return (rows @ blocks[groups % layout.cols] * rows).sum((1, 2))

    def bounds(self, error: Tensor) -> Tensor:
        layout = self.layout
        slope = self._by_rows(error).flatten(0, 1) @ self.hessian  # [rows * out, columns]
        slope = slope.view(-1, layout.cols, layout.in_group)
        inverses = torch.stack([self._block(j).inverse for j in range(layout.cols)])
        parts = (torch.einsum("rji,jik->rjk", slope, inverses) * slope).sum(2)
        return 0.5 * parts.view(layout.rows, layout.out_group, layout.cols).sum(1).flatten()
