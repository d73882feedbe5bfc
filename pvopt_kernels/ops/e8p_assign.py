"""Nearest points of QuIP#'s E8P codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import implementation

__all__ = ["e8p_assign"]


def e8p_assign(target: Tensor, k: int = 1, *, metric: Tensor | None = None) -> Tensor:
    r"""Return the codes of the ``k`` nearest points of E8P, exactly and without scanning 2^16.

    .. math:: \min_{c,\, a,\, s} \sum_i d_i (t_i - c - s_i a_i)^2

    For each shift and absolute vector the best signs are those of :math:`t - c`; where their
    number of minuses has the wrong parity, the one place that costs least is flipped. That leaves
    2 x 256 errors to compare. The ``k`` best codes have their pair of shift and vector among the
    ``k`` best pairs, whose 128 sign patterns are compared next.

    Args:
        target: ``[n, 8]``, floating; half precision is computed in single.
        k: number of codes, at least 1.
        metric: ``[n, 8]`` non-negative weights ``d`` of the target's dtype, or None for 1.

    Returns:
        ``[n, min(k, 2**16), 2]`` int64, best first, as :func:`pvopt_kernels.e8p_decode` reads
        them. Of points at equal distance any one may come first.

    Raises:
        ValueError: if ``k`` is not positive.

    Example:
        >>> import torch
        >>> from pvopt_kernels import e8p_assign, e8p_decode
        >>> point = e8p_decode(torch.tensor([[17, 200]]))
        >>> e8p_assign(point + 0.1).tolist()
        [[[17, 200]]]

    References:
        QuIP# (arXiv 2402.04396), section 4.2; Conway & Sloane, "Fast Quantizing and Decoding
        Algorithms for Lattice Quantizers and Codes" (1982).
    """
    check_tensors(target=target)
    check_floating(target=target, metric=metric)
    check_shape("target", target, "n", 8)
    check_shape("metric", metric, *target.shape)
    check_same_device(target=target, metric=metric)
    check_integers(k=k)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return _op(target, min(k, 1 << 16), metric)


@torch.library.custom_op("pvopt::e8p_assign", mutates_args=())
def _op(target: Tensor, k: int, metric: Tensor | None) -> Tensor:
    return implementation("e8p_assign", target)(target, k, metric=metric)


@_op.register_fake
def _fake(target: Tensor, k: int, metric: Tensor | None) -> Tensor:
    return target.new_empty(target.shape[0], k, 2, dtype=torch.int64)
