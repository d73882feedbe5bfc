"""The largest entries of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import check_floating, check_integers, check_shape, check_tensors
from pvopt_kernels.dispatch import call, implementation

__all__ = ["largest"]


def largest(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest entries of each row, in order; of equal ones the first.

    Entries that are NaN come last.

    Args:
        keys: ``[n, m]``, floating.
        k: at most ``m``.

    Returns:
        Values and indices (int64), ``[n, k]`` each.

    Raises:
        ValueError: if ``k`` is not in ``1 .. m``.
        TypeError: if the keys are not floating.

    Example:
        >>> import torch
        >>> from pvopt_kernels import largest
        >>> largest(torch.tensor([[3.0, 1.0, 3.0, 2.0]]), 3)
        (tensor([[3., 3., 2.]]), tensor([[0, 2, 3]]))
    """
    check_tensors(keys=keys)
    check_floating(keys=keys)
    check_shape("keys", keys, "n", "m")
    check_integers(k=k)
    if not 1 <= k <= keys.shape[1]:
        raise ValueError(f"k must be in 1 .. {keys.shape[1]}, the entries of a row, got {k}")
    return call(_op, keys, k)


@torch.library.custom_op("pvopt::largest", mutates_args=())
def _op(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return implementation("largest", keys)(keys, k)


@_op.register_fake
def _fake(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (keys.shape[0], k)
    return keys.new_empty(shape), keys.new_empty(shape, dtype=torch.int64)
