"""Metrics of the matrices that the tensor of a weight holds."""

from __future__ import annotations

from collections.abc import Sequence

from pvopt.core.views import MatrixView

from .contract import Metric

__all__ = ["WeightMetric", "matrix_metrics"]

#: The metric of a weight, or one for each of its matrices (such as the experts of a mixture).
WeightMetric = Metric | Sequence[Metric | None]


def matrix_metrics(
    metric: WeightMetric | None, view: MatrixView, shape: Sequence[int]
) -> list[Metric | None]:
    """Return the metric of each matrix of a weight.

    Args:
        metric: of the weight, one for each of its matrices, or None for the Euclidean.
        view: of the weight.
        shape: of the weight.

    Returns:
        As many as there are matrices.

    Raises:
        ValueError: if the metric does not fit the weight.

    Example:
        >>> import torch
        >>> from pvopt import MatrixView
        >>> from pvopt.metrics import Diagonal
        >>> from pvopt.metrics.matrices import matrix_metrics
        >>> view = MatrixView(experts=True)
        >>> first, second = matrix_metrics(Diagonal(torch.rand(2, 3, 4)), view, (2, 3, 4))
        >>> second.weights.shape
        torch.Size([3, 4])
    """
    count, matrix = view.count(shape), view.matrix_shape(shape)
    if isinstance(metric, Sequence):
        if len(metric) != count:
            raise ValueError(f"metrics must be one for each of {count} matrices, got {len(metric)}")
        found = list(metric)
    elif metric is None or view.plain:
        found = [metric] * count
    else:
        found = metric.of_matrices(view, tuple(shape))
    for own in found:
        if own is not None:
            own.check(matrix)
    return [*found]
