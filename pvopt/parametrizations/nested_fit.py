"""Fits of grids whose scales and offsets are codes: least squares in turn with rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .preparation import usable_scales

__all__ = ["NestedFit", "fit_nested"]

_ROUNDS = 4


@dataclass
class NestedFit:
    """The best codes and values so far of each super-block.

    Args:
        codes: ``levels`` ``[n, groups, size]``; ``scales`` and ``offsets`` ``[n, groups]``.
        values: ``scales`` and ``offsets`` ``[n]``.
    """

    codes: dict[str, Tensor]
    values: dict[str, Tensor]


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

    Args:
        blocks: ``[n, groups, size]`` weights of super-blocks.
        importance: alike, the :math:`d`, or None for 1.
        scales: ``[n, groups]`` to begin with, of each group by itself, positive.
        offsets: alike; as codes have no sign, those above 0 are left out.
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
    scale = usable_scales(wide.amax(1) / last, usual / last)
    offset = low.amin(1) / last
    found: NestedFit | None = None
    least = torch.full_like(scale, torch.inf)
    for _ in range(_ROUNDS):
        steps = (wide / scale[:, None]).round().clamp(1, last)
        shifts = torch.where(offset[:, None] < 0, (low / offset[:, None]), 0.0)
        shifts = shifts.round().clamp(0, last)
        levels = _levels(blocks, scale, steps, offset, shifts, top)
        scale, offset = _values(blocks, weights, levels, steps, shifts, scale, offset)
        levels = _levels(blocks, scale, steps, offset, shifts, top)
        decoded = _decoded(levels, scale, steps, offset, shifts)
        error = ((decoded - blocks).square() * weights).sum((1, 2))
        made = NestedFit(
            {"levels": levels, "scales": steps, "offsets": shifts},
            {"scales": scale, "offsets": offset},
        )
        better = error < least
        least = torch.where(better, error, least)
        found = made if found is None else _better(better, made, found)
        wide, low = _groups(blocks, weights, levels, wide, low)
    assert found is not None
    # Where all weights are 0, levels of the usual size on both sides, and 0 exactly.
    middle, usual_scale = min(last, 1 << (bits - 1)), usable_scales(scales, usual).amax(1)
    levels, steps = torch.full_like(blocks, middle), torch.ones_like(scales)
    blank = NestedFit(
        {"levels": levels, "scales": steps, "offsets": middle * steps},
        {"scales": usual_scale, "offsets": -usual_scale},
    )
    return _better(zero.all(1), blank, found)


def _decoded(
    levels: Tensor, scale: Tensor, steps: Tensor, offset: Tensor, shifts: Tensor
) -> Tensor:
    own = (scale[:, None] * steps)[..., None], (offset[:, None] * shifts)[..., None]
    return own[0] * levels + own[1]


def _levels(
    blocks: Tensor, scale: Tensor, steps: Tensor, offset: Tensor, shifts: Tensor, top: int
) -> Tensor:
    """Return the nearest levels."""
    own = (scale[:, None] * steps)[..., None], (offset[:, None] * shifts)[..., None]
    return ((blocks - own[1]) / own[0]).round().clamp(0, top)


def _values(
    blocks: Tensor,
    weights: Tensor,
    levels: Tensor,
    steps: Tensor,
    shifts: Tensor,
    scale: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return scale and offset of least squares for fixed codes; those before where it has none."""
    x, y = levels * steps[..., None], shifts[..., None].expand_as(levels)
    sums = [
        (weights * a * b).sum((1, 2)) for a, b in ((x, x), (x, y), (y, y), (x, blocks), (y, blocks))
    ]
    xx, xy, yy, xw, yw = sums
    determinant = xx * yy - xy.square()
    both = determinant > 1e-6 * xx * yy
    new_scale = torch.where(both, (yy * xw - xy * yw) / determinant, (xw - xy * offset) / xx)
    new_offset = torch.where(both, (xx * yw - xy * xw) / determinant, offset)
    usable = (xx > 0) & (new_scale > 0) & (new_offset <= 0)
    return torch.where(usable, new_scale, scale), torch.where(usable, new_offset, offset)


def _groups(
    blocks: Tensor, weights: Tensor, levels: Tensor, wide: Tensor, low: Tensor
) -> tuple[Tensor, Tensor]:
    """Return scales and offsets of each group by itself for fixed levels, alike."""
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


def _better(better: Tensor, made: NestedFit, found: NestedFit) -> NestedFit:
    """Return what is better, super-block by super-block."""

    def chosen(new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
        places = {n: better.view(-1, *[1] * (t.dim() - 1)) for n, t in new.items()}
        return {n: torch.where(places[n], tensor, old[n]) for n, tensor in new.items()}

    return NestedFit(chosen(made.codes, found.codes), chosen(made.values, found.values))
