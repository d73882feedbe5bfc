"""Weights filled up with zeros to sizes that a format asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from pvopt.core.layout import matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_bool, check_integer
from pvopt.metrics.contract import Metric
from pvopt.metrics.diagonal import Diagonal

from .contract import SPACES, Space

__all__ = ["Padding"]


@SPACES.register(
    ShortForm(
        form="padN+FORM, padRxN+FORM",
        meaning="any of these, columns (and rows) filled up to multiples",
        example="pad128+grid:2g128",
        pattern=r"pad(?:(\d+)x)?(\d+)",
        settings=lambda rows, columns: dict(rows=int(rows or 1), columns=int(columns)),
        write=lambda s: f"pad{s.columns}" if s.rows == 1 else f"pad{s.rows}x{s.columns}",
    )
)
@dataclass(frozen=True, kw_only=True)
class Padding(Space):
    r"""A weight filled up with zeros to multiples of some rows and columns.

    .. math:: \hat W = \begin{pmatrix} W & 0 \\ 0 & 0 \end{pmatrix}

    What lies beyond the weight is cut off when it is decoded. It is free by default, its errors
    do not count: the Euclidean metric of weights is a diagonal one in the space. A rotation that
    follows mixes weights and zeros: it refuses free rows, and free columns make V steps search
    column by column. Let the zeros count then.

    Args:
        rows: a multiple of it the rows are filled up to.
        columns: a multiple of it the columns are filled up to.
        free: whether errors beyond the weight do not count; if they do, the space is an isometry.

    Raises:
        TypeError: if a setting is of another kind.
        ValueError: if it is out of range.

    Example:
        >>> import torch
        >>> from pvopt import Padding
        >>> Padding(columns=4).enter(torch.ones(1, 3), {})
        tensor([[1., 1., 1., 0.]])
    """

    rows: int = 1
    columns: int = 1
    free: bool = True

    on_activations = True

    def __post_init__(self) -> None:
        check_integer("rows", self.rows, 1, 1 << 20)
        check_integer("columns", self.columns, 1, 1 << 20)
        check_bool("free", self.free)

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows, columns = matrix_shape(shape)
        return rows + -rows % self.rows, columns + -columns % self.columns

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        rows, columns = matrix_shape(weight.shape)
        return pad(
            weight.reshape(rows, columns), (0, -columns % self.columns, 0, -rows % self.rows)
        )

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        rows, columns = matrix_shape(shape)
        return inner[:rows, :columns].reshape(shape)

    def enter_inputs(self, x: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return pad(x, (0, -x.shape[-1] % self.columns))

    def leave_outputs(
        self, y: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        return y[..., : matrix_shape(shape)[0]]

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        inner = self.inner_shape(shape)
        if metric is None:
            if not self.free:
                return None
            metric = Diagonal(torch.ones(1, matrix_shape(shape)[1], dtype=torch.float64))
        return metric.padded(shape, (inner[0], inner[1]))
