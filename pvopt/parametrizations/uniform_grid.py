"""Uniform grids with a scale per group (GPTQ, round-to-nearest)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_bool, check_integer
from pvopt.metrics.contract import Metric

from .options import FitOptions
from .preparation import prepare_fit, usable_scales, usual_size
from .registry import PARAMETRIZATIONS
from .representation import Representation
from .scalar_grid import ScalarGrid

__all__ = ["UniformGrid"]

# In levels. A zero point moves all weights of a group alike, and with them the layer's outputs, as
# inputs seldom have the mean 0; its own size grows with the number of levels.
_UNIT_OF_ZEROS = 0.25


@PARAMETRIZATIONS.register(
    ShortForm(
        form="grid:B[gN][s]",
        meaning="B-bit integers, scale and zero point per N inputs (or row); s: symmetric",
        example="grid:2g64, grid:4g128s",
        pattern=r"grid:?(\d+)(?:g(\d+))?(s?)",
        settings=lambda bits, size, symmetric: dict(
            bits=int(bits), group_size=size and int(size), symmetric=bool(symmetric)
        ),
        write=lambda p: (
            f"grid:{p.bits}" + (f"g{p.group_size}" if p.group_size else "") + "s" * p.symmetric
        ),
    )
)
@dataclass(frozen=True, kw_only=True)
class UniformGrid(ScalarGrid):
    r"""Integers of ``b`` bits with a scale (and a zero point) per group of consecutive inputs.

    .. math:: w = s_g\,(q - z_g), \qquad q \in \{0, \dots, 2^b - 1\}

    Values: ``scales`` and, if asymmetric, ``zeros``, ``[rows, columns / group_size]`` each. The
    symmetric grid has :math:`z = 2^{b-1}` fixed. Codes move weight by weight.

    Args:
        bits: ``b``, 1 to 8.
        group_size: inputs that share a scale; None stands for a whole row.
        symmetric: whether the zero point is fixed.

    Raises:
        TypeError: if ``bits`` or ``group_size`` is not an integer.
        ValueError: if one is out of range, or (on use) the group does not divide the columns.

    Example:
        >>> rep = UniformGrid(bits=2, group_size=4).fit(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
        >>> rep.decode()
        tensor([[0., 1., 2., 3.]])

    References:
        GPTQ (arXiv 2210.17323), section 4; PV-Tuning (arXiv 2405.14852), appendix on GPTQ grids.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False

    value_units: ClassVar[Mapping[str, float]] = {"zeros": _UNIT_OF_ZEROS}

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, 8)
        super().__post_init__()
        check_bool("symmetric", self.symmetric)

    @property
    def num_codes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 << self.bits

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        size = self._scale_shape(shape)
        return {"scales": size} if self.symmetric else {"scales": size, "zeros": size}

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Round to nearest, with the range clipped and refitted for the least squared error."""
        weight, importance, _ = prepare_fit(weight, metric, generator)
        self.layout(tuple(weight.shape))
        size = self._scale_size(tuple(weight.shape))
        groups = weight.view(-1, size)
        weights = torch.ones_like(groups) if importance is None else importance.view(-1, size)
        usual = 4 * usual_size(tuple(weight.shape)) / (self.num_codes - 1)
        scale, zero, codes = self._fit_groups(groups, weights, usual)
        return self._represent(codes, {"scales": scale, "zeros": zero}, tuple(weight.shape))

    def _fit_groups(
        self, groups: Tensor, importance: Tensor, unit: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Search the clipping of each row of ``groups``; return scale, zero ``[n, 1]``, codes.

        A scale is ``unit`` where nothing else says how large it is.
        """
        middle = float(1 << (self.bits - 1))
        low = groups.amin(1, keepdim=True)
        high = groups.amax(1, keepdim=True)
        if self.symmetric:
            full = torch.maximum(-low / middle, high / max((self.num_codes - 1) - middle, 1.0))
        else:
            full = (high - low) / (self.num_codes - 1)
        # A constant group leaves its scale open: one of the weight's own size.
        constant = float(groups.abs().mean())
        usual = usable_scales(full, constant if constant > 0 else unit)
        best_error = groups.new_full((len(groups), 1), torch.inf)
        best = (torch.ones_like(low), torch.zeros_like(low), torch.zeros_like(groups))
        # At 2 bits the best range of Gaussian weights is about half of min..max.
        for ratio in torch.linspace(1.0, 0.3, 15).tolist():
            scale = torch.where(full > 0, full * ratio, usual)
            center = low + (high - low) / 2
            zero = (self.num_codes - 1) / 2 - center / scale
            if self.symmetric:
                zero = torch.full_like(low, middle)
            for _ in range(3):
                codes = (groups / scale + zero).round_().clamp_(0, (self.num_codes - 1))
                error = ((scale * (codes - zero) - groups).square() * importance).sum(1, True)
                better = error < best_error
                best_error = torch.where(better, error, best_error)
                best = (
                    torch.where(better, scale, best[0]),
                    torch.where(better, zero, best[1]),
                    torch.where(better, codes, best[2]),
                )
                scale, zero = self._least_squares(groups, importance, codes, scale, zero)
        return best

    def _least_squares(
        self, groups: Tensor, importance: Tensor, codes: Tensor, scale: Tensor, zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refit scale and zero to fixed codes; keep the old ones where the fit degenerates."""
        if self.symmetric:
            level = codes - zero
            energy = (importance * level.square()).sum(1, True)
            fitted = (importance * level * groups).sum(1, True) / energy
            return torch.where((energy > 0) & (fitted != 0), fitted, scale), zero
        mass = importance.sum(1, True)
        mean_code = (importance * codes).sum(1, True) / mass
        mean = (importance * groups).sum(1, True) / mass
        spread = (importance * (codes - mean_code).square()).sum(1, True)
        fitted = (importance * (codes - mean_code) * (groups - mean)).sum(1, True) / spread
        usable = (spread > 0) & (fitted > 0)
        scale = torch.where(usable, fitted, scale)
        # Constant codes leave the scale open, but still the best zero point follows from it.
        return scale, torch.where(mass > 0, mean_code - mean / scale, zero)

    def step_and_zero(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
        zero = float(1 << (self.bits - 1)) if self.symmetric else values["zeros"]
        return values["scales"], zero
