"""Signs and zero with a scale per row or group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.registry import ShortForm
from pvopt.metrics.contract import Metric

from .options import FitOptions
from .preparation import prepare_fit, usable_scales, usual_size
from .registry import PARAMETRIZATIONS
from .representation import Representation
from .zero_point_grid import ZeroPointGrid

__all__ = ["Ternary"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="ternary[:gN]",
        meaning="a sign or 0 per weight, scale per N inputs (or row)",
        example="ternary, ternary:g64",
        pattern=r"ternary(?::?g(\d+))?",
        settings=lambda size: dict(group_size=size and int(size)),
        write=lambda p: "ternary" + (f":g{p.group_size}" if p.group_size else ""),
    )
)
@dataclass(frozen=True, kw_only=True)
class Ternary(ZeroPointGrid):
    r"""Weights of three values, :math:`-a, 0, a`, with a scale per row or group of inputs.

    .. math:: w = a_g\,(q - 1), \qquad q \in \{0, 1, 2\}

    Values: ``scales`` ``[rows, columns / group_size]``. Five codes are stored in a byte: 1.6 bits
    per weight, of :math:`\log_2 3 = 1.585` that three equally likely values carry.

    For a support S the best scale is the mean magnitude on it, which lowers the squared error by
    :math:`(\sum_S d_i |w_i|)^2 / \sum_S d_i`. For a scale the best support is
    :math:`\{i: |w_i| > a / 2\}`, whatever the metric d: it holds the largest magnitudes, so the
    best of all supports is found among the prefixes of the sorted magnitudes.

    Args:
        group_size: inputs that share a scale; None stands for a whole row.

    Raises:
        TypeError: if ``group_size`` is not an integer.
        ValueError: if it is out of range, or (on use) does not divide the columns.

    Example:
        >>> import torch
        >>> from pvopt import Ternary
        >>> Ternary().fit(torch.tensor([[1.0, -0.2, 0.1, -2.0]])).decode()
        tensor([[ 1.5000,  0.0000,  0.0000, -1.5000]])

    References:
        Li et al., "Ternary Weight Networks" (arXiv 1605.04711), section 2.
    """

    group_size: int | None = None

    num_codes = 3
    codes_per_word = 5

    def step_and_zero(
        self, values: Mapping[str, Tensor], codes: Mapping[str, Tensor]
    ) -> tuple[Tensor, float]:
        """The levels are a scale apart around zero."""
        return values["scales"], 1.0

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Take the best prefix of the sorted magnitudes: the least squared error, exactly."""
        weight, weights, _ = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        self.layout(shape)
        groups = weight.view(-1, self._scale_size(shape))
        importance = torch.ones_like(groups) if weights is None else weights.view_as(groups)
        magnitudes, order = groups.abs().sort(1, descending=True)
        # float64: the gains of neighbouring prefixes of a long row differ little.
        mass = importance.gather(1, order).double().cumsum(1)
        total = (importance.gather(1, order).double() * magnitudes.double()).cumsum(1)
        gains = torch.where(mass > 0, total.square() / mass, 0.0)  # [n, size]
        last = gains.argmax(1, keepdim=True)
        scales = (total / mass).gather(1, last)
        # Where nothing counts, the scale is open: the largest weight makes a small error.
        scales = torch.where(mass[:, -1:] > 0, scales, magnitudes[:, :1].double()).to(groups.dtype)
        scales = usable_scales(scales, usual_size(shape))
        levels = torch.where(groups.abs() > scales / 2, groups.sign(), 0.0)
        return self._represent(levels + 1, {"scales": scales}, shape)
