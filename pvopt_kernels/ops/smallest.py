"""The smallest entries of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import check_floating, check_integers, check_shape, check_tensors
from pvopt_kernels.dispatch import call, implementation

__all__ = ["smallest"]


def smallest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` smallest entries of each row, in order.

    Args:
        scores: ``[n, m]``.
        k: at most ``m``.

    Returns:
        Values and indices, ``[n, k]`` each.

    Example:
        >>> import torch
        >>> from pvopt_kernels import smallest
        >>> smallest(torch.tensor([[3.0, 1.0, 2.0]]), 2)
        (tensor([[1., 2.]]), tensor([[1, 2]]))
    """
    check_tensors(scores=scores)
    check_floating(scores=scores)
    check_shape("scores", scores, "n", "m")
    check_integers(k=k)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be in 1 .. {scores.shape[1]}, the entries of a row, got {k}")
    return call(_op, scores, k)


@torch.library.custom_op("pvopt::smallest", mutates_args=())
def _op(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return implementation("smallest", scores)(scores, k)


@_op.register_fake
def _fake(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)
