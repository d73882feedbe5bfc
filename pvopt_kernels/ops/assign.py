"""The nearest codebook entries of each group."""

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
from pvopt_kernels.dispatch import call, implementation

__all__ = ["assign"]


def assign(
    target: Tensor, codebook: Tensor, k: int = 1, *, metric: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Find the ``k`` nearest entries of a codebook for each target.

    .. math:: z_n = \arg\min_z \sum_i d_{ni} (t_{ni} - c_{zi})^2

    The matrix of all distances is never stored. Of entries at the same distance the one with the
    lowest number comes first. (Targets are compared in float32 through
    :math:`|c|^2 - 2 t \cdot c` where that is faster: entries whose errors differ by less than its
    rounding, about :math:`10^{-6} |c|^2`, may change places.) The order of the result and the
    errors returned are exact.

    Args:
        target: ``[n, g]``, floating.
        codebook: ``[K, g]``, floating.
        k: number of entries to return, at most ``K``.
        metric: ``[n, g]`` non-negative weights ``d``, or None for 1.

    Returns:
        Codes ``[n, k]`` int64, nearest first, and their squared errors ``[n, k]`` in the widest of
        the arguments' dtypes and float32.

    Raises:
        ValueError: if shapes or devices do not fit, or ``k`` is not in ``1 .. K``.
        TypeError: if a tensor is not floating.

    Example:
        >>> import torch
        >>> from pvopt_kernels import assign
        >>> codebook = torch.tensor([[0.0], [1.0], [3.0]])
        >>> assign(torch.tensor([[2.5]]), codebook, k=2)
        (tensor([[2, 1]]), tensor([[0.2500, 2.2500]]))

    References:
        PV-Tuning (arXiv 2405.14852), section 3: the V step rounds to nearest values.
    """
    check_tensors(target=target, codebook=codebook)
    check_floating(target=target, codebook=codebook, metric=metric)
    check_shape("target", target, "n", "g")
    check_shape("codebook", codebook, "K", target.shape[1])
    check_shape("metric", metric, *target.shape)
    check_same_device(target=target, codebook=codebook, metric=metric)
    check_integers(k=k)
    if not 1 <= k <= codebook.shape[0]:
        raise ValueError(f"k must be in 1 .. {codebook.shape[0]}, the codebook's size, got {k}")
    return call(_op, target, codebook, k, metric)


@torch.library.custom_op("pvopt::assign", mutates_args=())
def _op(target: Tensor, codebook: Tensor, k: int, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = target.new_empty(0, dtype=_exact(target, codebook, metric))
    return implementation("assign", wide)(target, codebook, k, metric=metric)


@_op.register_fake
def _fake(target: Tensor, codebook: Tensor, k: int, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (target.shape[0], k)
    errors = target.new_empty(shape, dtype=_exact(target, codebook, metric))
    return target.new_empty(shape, dtype=torch.int64), errors


def _exact(target: Tensor, codebook: Tensor, metric: Tensor | None) -> torch.dtype:
    """Return the widest of the dtypes and float32."""
    exact = torch.promote_types(target.dtype, codebook.dtype)
    if metric is not None:
        exact = torch.promote_types(exact, metric.dtype)
    return torch.promote_types(exact, torch.float32)
