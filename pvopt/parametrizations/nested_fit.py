"""Fits of grids whose scales and offsets are codes: least squares in turn with rounding."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .preparation import usable_scales

__all__ = ["NestedFit", "fit_nested"]

_ROUNDS = 4
# Below this share of what it could be, a determinant says that codes are one another's multiples.
_LEAST_DETERMINANT = 1e-6


@dataclass(frozen=True, eq=False)
class NestedFit:
    """Codes and values of super-blocks.

    Args:
        levels: ``[n, groups, size]``.
        steps: ``[n, groups]``, codes of scales.
        shifts: ``[n, groups]``, codes of offsets.
        scale: ``[n]``.
        offset: ``[n]``.
    """

    levels: Tensor
    steps: Tensor
    shifts: Tensor
    scale: Tensor
    offset: Tensor

    @property
    def step(self) -> Tensor:
        """Distance of the levels of each group, ``[n, groups, 1]``."""
        return (self.scale[:, None] * self.steps)[..., None]

    @property
    def shift(self) -> Tensor:
        """The lowest level of each group, ``[n, groups, 1]``."""
        return (self.offset[:, None] * self.shifts)[..., None]

    def where(self, better: Tensor, other: NestedFit) -> NestedFit:
        """Return this one where it is better ``[n]``, and another one elsewhere."""
        parts = {}
        for name in (field.name for field in fields(self)):
            mine = getattr(self, name)
            places = better.view(-1, *[1] * (mine.dim() - 1))
            parts[name] = torch.where(places, mine, getattr(other, name))
        return NestedFit(**parts)


def fit_nested(
    blocks: Tensor,
    importance: Tensor | None,
    scales: Tensor,
    offsets: Tensor,
    *,
    bits: int,
    scale_bits: int,
    usual: float,
) -> NestedFit:
    r"""Return codes and values of small squared error.

    .. math:: \min \sum_{g, i} d_{gi}\,(s\,\sigma_g\,q_{gi} + m\,\mu_g - w_{gi})^2

    Offsets are at most 0, as files of llama.cpp have them.

    Args:
        blocks: ``[n, groups, size]`` weights of super-blocks.
        importance: alike, the :math:`d`, or None for 1.
        scales: ``[n, groups]`` to begin with, of each group by itself, positive.
        offsets: alike.
        bits: of a level.
        scale_bits: of the code of a scale or an offset.
        usual: size of weights where they do not say.
    """
    weights = torch.ones_like(blocks) if importance is None else importance
    top, last = (1 << bits) - 1, (1 << scale_bits) - 1
    zero = (blocks == 0).all(2)
    # Without an offset a group reaches from 0 to its largest weight.
    wide = torch.where(offsets > 0, scales + offsets / top, scales)
    low = torch.where(zero, 0.0, offsets.clamp(max=0))
    # Where all weights are 0: levels of the usual size on both sides, and 0 exactly.
    middle, unit = min(last, 1 << (bits - 1)), usable_scales(scales, usual).amax(1)
    ones = torch.ones_like(scales)
    blank = NestedFit(torch.full_like(blocks, middle), ones, middle * ones, unit, -unit)
    scale, offset = usable_scales(wide.amax(1) / last, usual / last), low.amin(1) / last
    best, least = blank, torch.where(zero.all(1), 0.0, torch.inf)
    for _ in range(_ROUNDS):
        steps = (wide / scale[:, None]).round().clamp(1, last)
        shifts = torch.where(offset[:, None] < 0, low / offset[:, None], 0.0)
        found = NestedFit(blocks, steps, shifts.round().clamp(0, last), scale, offset)
        found = _nearest(_with_values(_nearest(found, blocks, top), blocks, weights), blocks, top)
        decoded = found.step * found.levels + found.shift
        error = ((decoded - blocks).square() * weights).sum((1, 2))
        best, least = found.where(error < least, best), torch.minimum(error, least)
        scale, offset = found.scale, found.offset
        wide, low = _by_groups(blocks, weights, found.levels, wide, low)
    return best


def _nearest(found: NestedFit, blocks: Tensor, top: int) -> NestedFit:
    """Take the nearest levels."""
    levels = (blocks - found.shift) / found.step
    return replace(found, levels=levels.round().clamp(0, top))


def _with_values(found: NestedFit, blocks: Tensor, weights: Tensor) -> NestedFit:
    """Take scale and offset of least squares for the codes, where these determine them."""
    x = found.levels * found.steps[..., None]
    y = found.shifts[..., None].expand_as(x)
    pairs = ((x, x), (x, y), (y, y), (x, blocks), (y, blocks))
    xx, xy, yy, xw, yw = ((weights * a * b).sum((1, 2)) for a, b in pairs)
    determinant = xx * yy - xy.square()
    both = determinant > _LEAST_DETERMINANT * xx * yy
    scale = torch.where(both, (yy * xw - xy * yw) / determinant, (xw - xy * found.offset) / xx)
    offset = torch.where(both, (xx * yw - xy * xw) / determinant, found.offset)
    usable = (xx > 0) & (scale > 0) & (offset <= 0)
    return replace(
        found,
        scale=torch.where(usable, scale, found.scale),
        offset=torch.where(usable, offset, found.offset),
    )


def _by_groups(
    blocks: Tensor, weights: Tensor, levels: Tensor, wide: Tensor, low: Tensor
) -> tuple[Tensor, Tensor]:
    """Return scale and offset of least squares of each group by itself, for fixed levels.

    Args:
        blocks: ``[n, groups, size]``.
        weights: alike.
        levels: alike.
        wide: ``[n, groups]``, what to take where levels leave the scale open.
        low: alike, of the offset.
    """
    mass = weights.sum(2)
    mean, level = ((weights * x).sum(2) / mass for x in (blocks, levels))
    apart = levels - level[..., None]
    spread = (weights * apart.square()).sum(2)
    fitted = (weights * apart * blocks).sum(2) / spread
    usable = (mass > 0) & (spread > 0) & (fitted > 0)
    scale = torch.where(usable, fitted, wide)
    offset = torch.where(mass > 0, mean - scale * level, low)
    # Without an offset, the scale of least squares through 0.
    through = (weights * levels * blocks).sum(2) / (weights * levels.square()).sum(2)
    above = usable & (offset > 0) & (through > 0)
    return torch.where(above, through, scale), offset.clamp(max=0)
