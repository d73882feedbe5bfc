"""Which of the groups that ask for nearly equal changes come first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation

__all__ = ["break_ties_"]

# Magnitudes that differ by less than this share of them are taken for equal: a hundred times the
# rounding of a weight that an update is a thousandth of, in float32.
_TIE = 1e-3


def break_ties_(magnitudes: Tensor, rep: Representation, gradients: Sequence[Tensor]) -> None:
    """Let groups of larger gradient come first among those that ask for nearly equal changes.

    Args:
        magnitudes: ``[weights, num_groups]``, changed in place.
        rep: of the weights.
        gradients: ``[*shape]`` of each.
    """
    norms = magnitudes.new_empty(magnitudes.shape, dtype=rep.dtype)
    for row, gradient in zip(norms, gradients, strict=True):
        torch.sqrt(rep.split(gradient.to(rep.dtype)).square().sum(1), out=row)
    sizes = norms.mean(1, keepdim=True) + norms
    share = norms.div_(sizes.clamp_min_(torch.finfo(rep.dtype).tiny))
    magnitudes *= share.mul_(_TIE).add_(1)
