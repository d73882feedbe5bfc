"""Uniform grids that begin at an offset of their own in each group (Q4_1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.registry import ShortForm
from pvopt.metrics.contract import Metric

from .offset_grid import OffsetGrid
from .options import FitOptions
from .registry import PARAMETRIZATIONS
from .representation import Representation
from .uniform_grid import UniformGrid

__all__ = ["AffineGrid"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="affine:B[gN]",
        meaning="B-bit integers, scale and offset per N inputs (or row)",
        example="affine:4g32",
        pattern=r"affine:?(\d+)(?:g(\d+))?",
        settings=lambda bits, size: dict(bits=int(bits), group_size=size and int(size)),
        write=lambda p: f"affine:{p.bits}" + (f"g{p.group_size}" if p.group_size else ""),
    )
)
@dataclass(frozen=True, kw_only=True)
class AffineGrid(OffsetGrid):
    r"""Integers of ``b`` bits with a scale and an offset per group of consecutive inputs.

    .. math:: w = s_g\,q + m_g, \qquad q \in \{0, \dots, 2^b - 1\}

    Values: ``scales`` and ``offsets``, ``[rows, columns / group_size]`` each. What it can represent
    is what :class:`UniformGrid` can with real zero points, :math:`m = -s z`; but files of other
    tools store offsets, in half precision, and a product of two rounded numbers is none of those.

    Args:
        bits: ``b``, 1 to 8.
        group_size: inputs that share a scale and an offset; None stands for a whole row.

    Raises:
        TypeError: if ``bits`` or ``group_size`` is not an integer.
        ValueError: if one is out of range, or (on use) the group does not divide the columns.

    Example:
        >>> import torch
        >>> from pvopt import AffineGrid
        >>> rep = AffineGrid(bits=2, group_size=4).fit(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        >>> rep.values["offsets"], rep.decode()
        (tensor([[1.]]), tensor([[1., 2., 3., 4.]]))

    References:
        The block types Q4_1 and Q5_1 of llama.cpp.
    """

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        size = self._scale_shape(shape)
        return {"scales": size, "offsets": size}

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Fit a grid with real zero points, which represents the same weights."""
        grid = UniformGrid(bits=self.bits, group_size=self.group_size)
        rep = grid.fit(weight, metric=metric, options=options, generator=generator)
        scales, zeros = rep.values["scales"], rep.values["zeros"]
        return Representation(
            self, rep.codes, {"scales": scales, "offsets": -scales * zeros}, rep.shape
        )

    def _scales_and_offsets(self, rep: Representation, groups: Tensor | None) -> list[Tensor]:
        return self._of_groups(rep, (rep.values[name] for name in self.scaling), groups)
