"""Weights of the squared errors: the diagonal metric, and the Euclidean one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from pvopt.core.layout import GroupLayout, matrix_shape
from pvopt.core.views import MatrixView

from .contract import GroupCosts, GroupMetric, Metric
from .row import Row

__all__ = ["Diagonal", "GroupDiagonal", "SeparableCosts"]


@dataclass(frozen=True, eq=False)
class GroupDiagonal(GroupMetric):
    """Weights of the squared errors of some groups.

    Args:
        weights: ``[n, group_size]``, non-negative.

    Example:
        >>> import torch
        >>> from pvopt.metrics.diagonal import GroupDiagonal
        >>> GroupDiagonal(torch.tensor([[2.0, 1.0]])).squared_norms(torch.tensor([[1.0, 2.0]]))
        tensor([6.])
    """

    weights: Tensor

    couples = False

    def squared_norms(self, vectors: Tensor) -> Tensor:
        weights = self.weights
        if vectors.dim() > 2:
            weights = weights.view(len(weights), *[1] * (vectors.dim() - 2), -1)
        return (vectors.square() * weights).sum(-1)

    def diagonal(self, vectors: Tensor) -> Tensor:
        return self.weights.to(vectors)


class SeparableCosts(GroupCosts):
    """Costs in a diagonal metric: every group has its own part of the squared error.

    Args:
        weights: ``[num_groups, group_size]``, or None for the Euclidean metric.
    """

    coupled = False

    def __init__(self, weights: Tensor | None) -> None:
        self.weights = weights

    def _metric(self, groups: Tensor) -> GroupDiagonal | None:
        return None if self.weights is None else GroupDiagonal(self.weights.index_select(0, groups))

    def rounds(self, groups: Tensor) -> Sequence[tuple[int, Tensor | slice]]:
        return [(0, slice(None))]

    def goal(
        self, number: int, groups: Tensor, target: Tensor, decoded: Tensor, error: Tensor
    ) -> tuple[Tensor, GroupMetric | None]:
        return target.index_select(0, groups), self._metric(groups)

    def squared_norms(self, vectors: Tensor, groups: Tensor | None = None) -> Tensor:
        squares = vectors.square()
        if self.weights is not None:
            own = self.weights if groups is None else self.weights.index_select(0, groups)
            squares.mul_(own)
        return squares.sum(-1)

    def bounds(self, error: Tensor) -> Tensor:
        return 0.5 * self.squared_norms(error)


@dataclass(frozen=True, eq=False)
class Diagonal(Metric):
    r"""Weights of the squared errors.

    .. math:: \|W\|_D^2 = \sum_i d_i W_i^2

    Args:
        weights: ``[*shape]`` non-negative; or ``[1, columns]`` for weights that all rows share.

    Raises:
        TypeError: if the weights are not floating.
        ValueError: if one is negative or NaN.

    Example:
        >>> import torch
        >>> from pvopt import Diagonal
        >>> Diagonal(torch.tensor([[2.0, 1.0]])).squared_norm(torch.tensor([[1.0, 2.0]]))
        tensor(6.)
    """

    weights: Tensor

    def __post_init__(self) -> None:
        if not self.weights.is_floating_point():
            raise TypeError(f"weights must be floating, got {self.weights.dtype}")
        if not self.weights.is_meta and not bool((self.weights >= 0).all()):
            raise ValueError("weights must not be negative or NaN, got at least one that is")

    def check(self, shape: tuple[int, ...]) -> None:
        rows, columns = matrix_shape(shape)
        found = tuple(self.weights.shape)
        if found not in (tuple(shape), (rows, columns), (1, columns)):
            raise ValueError(
                f"a diagonal metric must have shape {list(shape)} or [1, {columns}], "
                f"got {list(found)}"
            )

    def squared_norm(self, weight: Tensor) -> Tensor:
        return (weight.square() * self.diagonal(tuple(weight.shape)).to(weight)).sum()

    def diagonal(self, shape: tuple[int, ...]) -> Tensor:
        return self._matrix(shape).expand(matrix_shape(shape)).reshape(shape)

    def costs(self, layout: GroupLayout, like: Tensor) -> SeparableCosts:
        return SeparableCosts(layout.split(self.diagonal(layout.shape)).to(like))

    def of_matrices(self, view: MatrixView, shape: tuple[int, ...]) -> Sequence[Diagonal]:
        if tuple(self.weights.shape) != shape:
            return [self] * view.count(shape)
        return [Diagonal(matrix) for matrix in view.matrices(self.weights)]

    def permuted(self, order: Tensor, shape: tuple[int, ...]) -> Diagonal:
        return Diagonal(self._matrix(shape).index_select(1, order))

    def scaled(
        self, rows: Tensor | None, columns: Tensor | None, shape: tuple[int, ...]
    ) -> Diagonal:
        weights = self._matrix(shape)
        if columns is not None:
            weights = weights * columns.to(weights.device).square()
        if rows is not None:
            weights = weights * rows.to(weights.device).square()[:, None]
        return Diagonal(weights)

    def rotated(self, rotate: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Row:
        if len(self._matrix(shape)) > 1:
            raise TypeError(
                "a rotated space takes no diagonal metric that differs between rows: the rotation "
                "mixes all weights. Use a metric that all rows share, or none"
            )
        return Row(self.weights.reshape(-1).diag()).rotated(rotate, shape)

    def padded(self, shape: tuple[int, ...], inner: tuple[int, int]) -> Diagonal:
        rows, columns = matrix_shape(shape)
        weights = self._matrix(shape)
        if inner[0] != rows:  # the rows beyond the weight differ from its own
            weights = weights.expand(rows, columns)
        more = inner[0] - rows
        return Diagonal(pad(weights, (0, inner[1] - columns, 0, more)))

    def without_row(self, row: int, shape: tuple[int, ...]) -> Diagonal:
        weights = self._matrix(shape)
        if len(weights) == 1:
            return self
        return Diagonal(torch.cat([weights[:row], weights[row + 1 :]]))

    def _matrix(self, shape: tuple[int, ...]) -> Tensor:
        """Return the weights as ``[rows, columns]``, or ``[1, columns]`` where rows share them."""
        self.check(shape)
        return self.weights.reshape(-1, matrix_shape(shape)[1])

    def normalized(self) -> Diagonal:
        mean = self.weights.mean()
        return Diagonal(torch.where(mean > 0, self.weights / mean, 1.0))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Diagonal:
        return Diagonal(self.weights.to(device=device, dtype=dtype))
