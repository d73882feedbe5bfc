"""Signs with a scale per row or group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.registry import ShortForm
from pvopt.metrics.contract import Metric

from .options import FitOptions
from .preparation import prepare_fit
from .registry import PARAMETRIZATIONS
from .representation import Representation
from .zero_point_grid import ZeroPointGrid

__all__ = ["Binary"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="binary[:gN]",
        meaning="a sign per weight, scale per N inputs (or row)",
        example="binary, binary:g64",
        pattern=r"binary(?::?g(\d+))?",
        settings=lambda size: dict(group_size=size and int(size)),
        write=lambda p: "binary" + (f":g{p.group_size}" if p.group_size else ""),
    )
)
@dataclass(frozen=True, kw_only=True)
class Binary(ZeroPointGrid):
    r"""Weights of two values, :math:`\pm a`, with a scale per row or group of inputs.

    .. math:: w = a_g\,(2 q - 1), \qquad q \in \{0, 1\}

    Values: ``scales`` ``[rows, columns / group_size]``. The best scale for given weights is their
    mean magnitude, :math:`a = \sum_i d_i |w_i| / \sum_i d_i` in a diagonal metric :math:`d`.

    Args:
        group_size: inputs that share a scale; None stands for a whole row.

    Raises:
        TypeError: if ``group_size`` is not an integer.
        ValueError: if it is out of range, or (on use) does not divide the columns.

    Example:
        >>> import torch
        >>> from pvopt import Binary
        >>> Binary().fit(torch.tensor([[1.0, -2.0, 3.0]])).decode()
        tensor([[ 2., -2.,  2.]])

    References:
        Rastegari et al., "XNOR-Net" (arXiv 1603.05279), section 3.1.
    """

    group_size: int | None = None

    num_codes = 2
    has_zero = False

    def step_and_zero(
        self, values: Mapping[str, Tensor], codes: Mapping[str, Tensor]
    ) -> tuple[Tensor, float]:
        """The levels are two scales apart around zero."""
        return 2 * values["scales"], 0.5

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Take the signs and the mean magnitudes: the least squared error, in closed form."""
        weight, importance, _ = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        self.layout(shape)
        size = self._scale_size(shape)
        magnitudes = weight.view(-1, size).abs()
        scales = magnitudes.mean(1)
        if importance is not None:
            weights = importance.view(-1, size)
            total = weights.sum(1)
            scales = torch.where(total > 0, (weights * magnitudes).sum(1) / total, scales)
        return self._represent(weight >= 0, {"scales": scales}, shape)
