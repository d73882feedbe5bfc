"""Gradients of the scales and zero points of a uniform grid."""

from __future__ import annotations

from torch import Tensor

from .uniform_decode import levels

__all__ = ["uniform_grad"]


def uniform_grad(
    gradient: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int
) -> tuple[Tensor, Tensor]:
    """Return both gradients in at least float32; see :func:`pvopt_kernels.uniform_grad`."""
    level = levels(packed, scales, zeros, bits, gradient.shape[1])
    groups = gradient.reshape(level.shape).to(level.dtype)
    of_scales = (groups * level).sum(1).view(scales.shape)
    return of_scales, -scales.to(level.dtype) * groups.sum(1).view(scales.shape)
