"""Which of the groups that ask for nearly equal changes come first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation

__all__ = ["break_ties_", "group_norms"]

# Magnitudes that differ by less than this share of them are taken for equal: a hundred times the
# rounding of a weight that an update is a thousandth of, in float32.
_TIE = 1e-3
# Groups whose gradients are squared at once.
_AT_ONCE = 1 << 14


def break_ties_(
    magnitudes: Tensor,
    rep: Representation,
    gradients: Sequence[Tensor],
    memory: tuple[Tensor, Tensor] | None = None,
    means: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Let groups of larger gradient come first among those that ask for nearly equal changes.

    Args:
        magnitudes: ``[weights, num_groups]``, changed in place.
        rep: of the weights.
        gradients: ``[*shape]`` of each.
        memory: what an earlier call for as many weights or more returned.
        means: ``[weights]``, the mean norm of a group's gradient; None for that of these groups.

    Returns:
        Memory that a later call can use: new memory would add to the holes of the heap.
    """
    if memory is None or len(memory[0]) < len(magnitudes):
        norms = magnitudes.new_empty(magnitudes.shape, dtype=rep.dtype)
        memory = norms, norms.new_empty(_AT_ONCE, rep.layout.group_size)
    norms, squares = memory[0][: len(magnitudes)], memory[1]
    for row, gradient in zip(norms, gradients, strict=True):
        group_norms(rep, gradient, out=row, memory=squares)
    # In double precision: the mean is the same, whatever the order of the groups.
    means = norms.mean(1, dtype=torch.float64) if means is None else means
    for own, row, mean in zip(magnitudes, norms, means.to(norms.dtype), strict=True):
        sizes = (row + mean).clamp_min_(torch.finfo(rep.dtype).tiny)
        own *= torch.div(row, sizes, out=sizes).mul_(_TIE).add_(1)
    return memory


def group_norms(
    rep: Representation, gradient: Tensor, *, out: Tensor, memory: Tensor | None = None
) -> Tensor:
    """Write the norms of a gradient's groups.

    Args:
        rep: of weights of its shape.
        gradient: ``[*shape]``.
        out: ``[num_groups]``, which is written and returned.
        memory: ``[n, group_size]`` for the squares of some groups.
    """
    if memory is None:
        memory = out.new_empty(min(_AT_ONCE, len(out)), rep.layout.group_size)
    groups = rep.split(gradient.to(rep.dtype))
    for own, part in zip(out.split(_AT_ONCE), groups.split(_AT_ONCE), strict=True):
        found = torch.square(part, out=memory[: len(part)])
        torch.sqrt(found.sum(1), out=own)
    return out
