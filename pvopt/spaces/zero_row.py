"""Weights of which one row is zero and stays so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.layout import matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_integer
from pvopt.metrics.contract import Metric

from .contract import SPACES, Space

__all__ = ["ZeroRow"]


@SPACES.register(
    ShortForm(
        form="zero-rowN+FORM",
        meaning="any of these, row N left out: it is zero and stays so",
        example="zero-row0+grid:2g64",
        pattern=r"zero-row(\d+)",
        settings=lambda row: dict(row=int(row)),
        write=lambda space: f"zero-row{space.row}",
    )
)
@dataclass(frozen=True, kw_only=True)
class ZeroRow(Space):
    r"""A weight without one of its rows, which is zero: the padding row of an embedding.

    .. math:: \hat W = \begin{pmatrix} W_{<r} \\ W_{>r} \end{pmatrix}, \qquad W_r = 0

    No code or value stands for the row, so nothing moves it.

    Args:
        row: number of the row, from 0.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is negative, or (on use) the weight has no such row or no other.

    Example:
        >>> import torch
        >>> from pvopt import ZeroRow
        >>> space = ZeroRow(row=1)
        >>> inner = space.enter(torch.tensor([[1.0], [0.0], [2.0]]), {})
        >>> inner.flatten().tolist(), space.leave(inner, {}, (3, 1)).flatten().tolist()
        ([1.0, 2.0], [1.0, 0.0, 2.0])
    """

    row: int

    on_activations = True

    def __post_init__(self) -> None:
        check_integer("row", self.row, 0, 1 << 40)

    def _rows(self, shape: tuple[int, ...]) -> int:
        rows = matrix_shape(shape)[0]
        if not self.row < rows or rows == 1:
            raise ValueError(
                f"row must be one of at least two rows, got {self.row} of a weight of shape "
                f"{list(shape)}"
            )
        return rows

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._rows(shape) - 1, *shape[1:]

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        self._rows(tuple(weight.shape))
        return torch.cat([weight[: self.row], weight[self.row + 1 :]])

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        zero = inner.new_zeros(1, *inner.shape[1:])
        return torch.cat([inner[: self.row], zero, inner[self.row :]])

    def enter_inputs(self, x: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return x

    def leave_outputs(
        self, y: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        zero = y.new_zeros(*y.shape[:-1], 1)
        return torch.cat([y[..., : self.row], zero, y[..., self.row :]], dim=-1)

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        return None if metric is None else metric.without_row(self.row, shape)
