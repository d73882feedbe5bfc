"""Signs with a scale per row or group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import matrix_shape
from .representation import Representation, code_dtype
from .scalar_grid import ScalarGrid
from .validation import prepare_fit

__all__ = ["Binary"]


@dataclass(frozen=True)
class Binary(ScalarGrid):
    r"""Weights of two values, :math:`\pm a`, with a scale per row or group of inputs.

    .. math:: w = a_g\,(2 q - 1), \qquad q \in \{0, 1\}

    Values: ``scales`` ``[rows, columns / group_size]``. The best scale for given weights is their
    mean magnitude, :math:`a = \sum_i d_i |w_i| / \sum_i d_i` in a diagonal metric :math:`d`.

    Args:
        group_size: inputs that share a scale; None stands for a whole row.

    Raises:
        TypeError: if ``group_size`` is no integer.
        ValueError: if it is out of range, or (on use) does not divide the columns.

    Example:
        >>> Binary().fit(torch.tensor([[1.0, -2.0, 3.0]])).decode()
        tensor([[ 2., -2.,  2.]])

    References:
        Rastegari et al., "XNOR-Net" (arXiv 1603.05279), section 3.1.
    """

    group_size: int | None = None

    @property
    def code_bits(self) -> int:
        """One bit, the sign."""
        return 1

    def step_and_zero(self, values: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """The levels are two scales apart around zero."""
        return 2 * values["scales"], 0.5

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Take the signs and the mean magnitudes: the least squared error, in closed form."""
        weight, metric, _ = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        self.layout(shape)
        size = self._scale_size(shape)
        magnitudes = weight.view(-1, size).abs()
        scales = magnitudes.mean(1)
        if metric is not None:
            importance = metric.view(-1, size)
            total = importance.sum(1)
            scales = torch.where(total > 0, (importance * magnitudes).sum(1) / total, scales)
        codes = (weight >= 0).view(*matrix_shape(shape), 1).to(code_dtype(1))
        values = {"scales": scales.view(self._scale_shape(shape))}
        return Representation(self, codes, values, shape)
