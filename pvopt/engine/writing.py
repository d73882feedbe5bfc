"""The one place that writes decoded weights into dense ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation

__all__ = ["write_decoded_"]


@torch.no_grad()
def write_decoded_(rep: Representation, weights: Sequence[Tensor]) -> None:
    """Write decoded weights in place.

    Args:
        rep: codes and values of as many weights.
        weights: ``[*shape]`` each, of any floating dtype.

    Example:
        >>> import torch
        >>> from pvopt import SharedValues
        >>> from pvopt.engine.writing import write_decoded_
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> weight = torch.zeros(1, 2)
        >>> write_decoded_(rep, [weight])
        >>> weight
        tensor([[0., 1.]])
    """
    matrices = rep.view.all_matrices(weights)
    rep = rep.matrices
    if rep.together:
        rep.parametrization.write_into(rep, matrices)
        return
    for member, matrix in zip(rep.members(), matrices, strict=True):
        matrix.copy_(member.decode())
