"""Channels with scales of their own, which a P step trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.layout import matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_bool
from pvopt.metrics.contract import Metric
from pvopt.metrics.diagonal import Diagonal

from .contract import SPACES, Space

__all__ = ["Scaling"]


@SPACES.register(
    ShortForm(
        form="scale:in+FORM, scale:out+FORM, scale:in-out+FORM",
        meaning="any of these, inputs or outputs divided by trained scales",
        example="scale:in+grid:2g64",
        pattern=r"scale:(in|out|in-out)",
        settings=lambda sides: dict(inputs="in" in sides, outputs="out" in sides),
        write=lambda s: "scale:" + "-".join(["in"] * s.inputs + ["out"] * s.outputs),
    )
)
@dataclass(frozen=True, kw_only=True)
class Scaling(Space):
    r"""Scales of inputs and outputs, trained like any other value.

    .. math:: W = \mathrm{diag}(r)\, \hat W\, \mathrm{diag}(c)

    Owns the values ``input_scales`` ``[columns]`` and ``output_scales`` ``[rows]``. A start
    divides every column, then every row, by its root mean square. It is no isometry: the
    Euclidean metric of weights is the diagonal one :math:`r_i^2 c_j^2` in the space.

    A rotation that follows mixes rows and takes no metric that differs between them. Scales that
    are left out of metrics go together with it, as in QTIP and ExLlamaV3: errors in the space then
    count alike, whatever their rows are multiplied by.

    Args:
        inputs: whether columns have scales.
        outputs: whether rows have scales.
        weighted: whether metrics account for the scales, exactly. Otherwise the Euclidean metric
            stays what it is, and others are scaled by columns alone.

    Raises:
        TypeError: if a setting is not a bool.
        ValueError: if both sides are False.

    Example:
        >>> import torch
        >>> from pvopt import Scaling
        >>> space, weight = Scaling(inputs=True), torch.tensor([[1.0, 2.0], [1.0, 2.0]])
        >>> _, owned = space.start(weight, None)
        >>> owned["input_scales"], space.enter(weight, owned)
        (tensor([1., 2.]), tensor([[1., 1.],
                [1., 1.]]))

    References:
        QTIP (arXiv 2406.11235), section 4: tuned scales around a fixed code.
    """

    inputs: bool = False
    outputs: bool = False
    weighted: bool = True

    on_activations = True

    def __post_init__(self) -> None:
        check_bool("inputs", self.inputs)
        check_bool("outputs", self.outputs)
        check_bool("weighted", self.weighted)
        if not self.inputs and not self.outputs:
            raise ValueError("inputs or outputs must be True, got False for both")

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        rows, columns = matrix_shape(shape)
        own = {"input_scales": (columns,)} if self.inputs else {}
        return {**own, "output_scales": (rows,)} if self.outputs else own

    def start(
        self, weight: Tensor, metric: Metric | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        matrix = weight.reshape(matrix_shape(weight.shape))
        owned = {}
        if self.inputs:
            owned["input_scales"] = _sizes(matrix, 0)
            matrix = matrix / owned["input_scales"]
        if self.outputs:
            owned["output_scales"] = _sizes(matrix, 1)
        return {}, owned

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        rows, columns = self._scales(weight, owned)
        matrix = weight.reshape(matrix_shape(weight.shape))
        # A scale of zero wipes its channel out: any finite weight in the space will do.
        matrix = torch.where(columns == 0, 0.0, matrix / columns)
        return torch.where(rows == 0, 0.0, matrix / rows).reshape(weight.shape)

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        rows, columns = self._scales(inner, owned)
        matrix = inner.reshape(matrix_shape(inner.shape))
        return (matrix * columns * rows).reshape(shape)

    def pull(self, gradient: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return self.leave(gradient, owned, tuple(gradient.shape))

    def pull_values(
        self, gradient: Tensor, inner: Tensor, owned: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        rows, columns = self._scales(inner, owned)
        products = (gradient.to(inner) * inner).reshape(matrix_shape(inner.shape))
        found = {}
        if self.inputs:
            found["input_scales"] = (products * rows).sum(0)
        if self.outputs:
            found["output_scales"] = (products * columns).sum(1)
        return found

    def _scales(self, like: Tensor, owned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the scales of rows ``[rows, 1]`` and of columns ``[columns]``, or ones."""
        one = like.new_ones(1)
        columns = owned["input_scales"] if self.inputs else one
        rows = owned["output_scales"] if self.outputs else one
        return rows.to(like)[:, None], columns.to(like)

    def enter_inputs(self, x: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return x * owned["input_scales"].to(x.dtype) if self.inputs else x

    def leave_outputs(
        self, y: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        return y * owned["output_scales"].to(y.dtype) if self.outputs else y

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        if not self.weighted:
            columns = owned.get("input_scales")
            return None if metric is None else metric.scaled(None, columns, shape)
        if metric is None:
            some = next(iter(owned.values()))
            metric = Diagonal(some.new_ones(1, matrix_shape(shape)[1]))
        return metric.scaled(owned.get("output_scales"), owned.get("input_scales"), shape)


def _sizes(matrix: Tensor, axis: int) -> Tensor:
    """Return root mean squares along an axis; 1 for channels of zeros."""
    found = matrix.square().mean(axis).sqrt()
    return torch.where(found > 0, found, 1.0)
