"""Uniform grids with a scale per group (GPTQ, round-to-nearest)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_bool, check_integer
from pvopt.metrics.contract import Metric

from .options import FitOptions
from .preparation import prepare_fit, usable_scales, usual_size
from .registry import PARAMETRIZATIONS
from .representation import Representation
from .zero_point_grid import ZeroPointGrid

__all__ = ["UniformGrid"]

# In levels. A zero point moves all weights of a group alike, and with them the layer's outputs, as
# inputs seldom have the mean 0; its own size grows with the number of levels.
_UNIT_OF_ZEROS = 0.25


# Ranges that are tried, as shares of min..max: at 2 bits the best one of Gaussian weights is about
# half of it.
_RATIOS = torch.linspace(1.0, 0.3, 15).tolist()
# Refits of each range that is tried, with a zero point that is free or is not, and of the best one.
# Squared error of Gaussian groups of 64 at 2 bits: 0.1043 after none of the last ones, 0.1035 after
# two, 0.1032 after eight and after sixteen (0.1036 with two refits of each range).
_FREE_ROUNDS, _FIXED_ROUNDS = 3, 1
_USUAL_ROUNDS = 8


@PARAMETRIZATIONS.register(
    ShortForm(
        form="grid:B[gN][s|z]",
        meaning="B-bit integers, scale and zero point per N inputs (or row); s: symmetric, "
        "z: integer zero points",
        example="grid:2g64, grid:4g128s, grid:2g64z",
        pattern=r"grid:?(\d+)(?:g(\d+))?(s|z)?",
        settings=lambda bits, size, zero: dict(
            bits=int(bits),
            group_size=size and int(size),
            symmetric=zero == "s",
            integer_zeros=zero == "z",
        ),
        write=lambda p: (
            f"grid:{p.bits}"
            + (f"g{p.group_size}" if p.group_size else "")
            + "s" * p.symmetric
            + "z" * p.integer_zeros
        ),
    )
)
@dataclass(frozen=True, kw_only=True)
class UniformGrid(ZeroPointGrid):
    r"""Integers of ``b`` bits with a scale (and a zero point) per group of consecutive inputs.

    .. math:: w = s_g\,(q - z_g), \qquad q \in \{0, \dots, 2^b - 1\}

    Values: ``scales`` and, if asymmetric, ``zeros``, ``[rows, columns / group_size]`` each. The
    symmetric grid has :math:`z = 2^{b-1}` fixed, and scales of either sign: the side that has a
    level more. Integer zero points
    :math:`z \in \{0, \dots, 2^b - 1\}`, as files of other tools have them, are codes of a stream
    ``zeros`` instead: ``b`` bits each, set by starts, not moved by V steps. Codes move weight by
    weight.

    Args:
        bits: ``b``, 1 to 8.
        group_size: inputs that share a scale; None stands for a whole row.
        symmetric: whether the zero point is fixed.
        integer_zeros: whether zero points are integers of ``b`` bits.

    Raises:
        TypeError: if ``bits`` or ``group_size`` is not an integer, or a flag not a bool.
        ValueError: if one is out of range, the zero point is to be fixed and an integer of its own
            at once, or (on use) the group does not divide the columns.

    Example:
        >>> import torch
        >>> from pvopt import UniformGrid
        >>> rep = UniformGrid(bits=2, group_size=4).fit(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
        >>> rep.decode()
        tensor([[0., 1., 2., 3.]])
        >>> whole = UniformGrid(bits=2, group_size=4, integer_zeros=True)
        >>> rep = whole.fit(torch.tensor([[-0.5, 0.0, 0.5, 1.0]]))
        >>> rep.codes["zeros"], rep.decode()
        (tensor([[1]], dtype=torch.uint8), tensor([[-0.5000,  0.0000,  0.5000,  1.0000]]))

    References:
        GPTQ (arXiv 2210.17323), section 4; PV-Tuning (arXiv 2405.14852), appendix on GPTQ grids.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False
    integer_zeros: bool = False

    value_units: ClassVar[Mapping[str, float]] = {"zeros": _UNIT_OF_ZEROS}

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, 8)
        super().__post_init__()
        check_bool("symmetric", self.symmetric)
        check_bool("integer_zeros", self.integer_zeros)
        if self.symmetric and self.integer_zeros:
            raise ValueError(
                "integer_zeros must be False for a symmetric grid, whose zero point is fixed"
            )

    @property
    def num_codes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 << self.bits

    @property
    def _zero_is_fixed(self) -> bool:
        """Whether a fit of the values leaves the zero point."""
        return self.symmetric or self.integer_zeros

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        streams = super().streams(shape)
        if self.integer_zeros:
            size = self._scale_shape(shape)
            streams["zeros"] = CodeStream(shape=size, num_codes=self.num_codes, moves=False)
        return streams

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        size = self._scale_shape(shape)
        return {"scales": size} if self._zero_is_fixed else {"scales": size, "zeros": size}

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
        rounds = (
            _USUAL_ROUNDS if options is None or options.iterations is None else options.iterations
        )
        scale, zero, codes = self._fit_groups(groups, weights, usual, rounds)
        return self._represent(codes, {"scales": scale, "zeros": zero}, tuple(weight.shape))

    def _fit_groups(
        self, groups: Tensor, importance: Tensor, unit: float, rounds: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Search the clipping of each row of ``groups``; return scale, zero ``[n, 1]``, codes.

        A scale is ``unit`` where nothing else says how large it is. The best of all is refitted
        ``rounds`` times.
        """
        best = _Best(groups, importance, self.num_codes)
        low, high = groups.aminmax(dim=1, keepdim=True)
        top = self.num_codes - 1
        if self._zero_is_fixed:  # what such a grid covers holds 0
            low, high = low.clamp(max=0), high.clamp(min=0)
        full = (high - low) / top
        # A constant group leaves its scale open: one of the weight's own size.
        constant = float(groups.abs().mean())
        usual = usable_scales(full, constant if constant > 0 else unit)
        tried = _FIXED_ROUNDS if self._zero_is_fixed else _FREE_ROUNDS
        for ratio in _RATIOS:
            scale = torch.where(full > 0, full * ratio, usual)
            for signed, zero in self._ways(low, high, full, scale):
                self._refine(best, signed, zero, tried)
        self._refine(best, best.scale, best.zero, rounds)
        return best.scale, best.zero, best.codes

    def _ways(
        self, low: Tensor, high: Tensor, full: Tensor, scale: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Return scales and zero points to begin with, for a range of this scale.

        A symmetric grid has a level more on one side: which one is the sign of the scale.
        """
        top = self.num_codes - 1
        if self.symmetric:
            middle = torch.full_like(low, 1 << (self.bits - 1))
            return [(scale, middle), (-scale, middle)]
        if self.integer_zeros:
            exact = torch.where(full > 0, -low / full, 1 << (self.bits - 1))
            return [(scale, exact.floor()), (scale, exact.ceil())]
        return [(scale, top / 2 - (low + (high - low) / 2) / scale)]

    def _refine(self, best: _Best, scale: Tensor, zero: Tensor, rounds: int) -> None:
        """Choose codes and refit the values to them in turn, so often."""
        for _ in range(rounds):
            codes = best.take(scale, zero)
            scale, zero = self._least_squares(best.groups, best.importance, codes, scale, zero)
        best.take(scale, zero)

    def _least_squares(
        self, groups: Tensor, importance: Tensor, codes: Tensor, scale: Tensor, zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refit scale and zero to fixed codes; keep the old ones where the fit degenerates."""
        if self._zero_is_fixed:
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

    def step_and_zero(
        self, values: Mapping[str, Tensor], codes: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | float]:
        scales = values["scales"]
        if self.symmetric:
            return scales, float(1 << (self.bits - 1))
        return scales, codes["zeros"].to(scales.dtype) if self.integer_zeros else values["zeros"]


class _Best:
    """The best scale, zero point and codes so far of each group.

    Args:
        groups: ``[n, size]``.
        importance: ``[n, size]`` weights of the squared errors.
        num_codes: of the grid.
    """

    def __init__(self, groups: Tensor, importance: Tensor, num_codes: int) -> None:
        self.groups, self.importance, self._last = groups, importance, num_codes - 1
        self._error = groups.new_full((len(groups), 1), torch.inf)
        self.scale, self.zero = torch.ones_like(self._error), torch.zeros_like(self._error)
        self.codes = torch.zeros_like(groups)

    def take(self, scale: Tensor, zero: Tensor) -> Tensor:
        """Round to nearest, keep what is better than before, and return the codes."""
        codes = (self.groups / scale + zero).round_().clamp_(0, self._last)
        error = ((scale * (codes - zero) - self.groups).square() * self.importance).sum(1, True)
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)
        self.codes = torch.where(better, codes, self.codes)
        return codes
