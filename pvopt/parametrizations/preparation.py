"""What every start does first."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt.metrics.contract import Metric

__all__ = ["prepare_fit", "prepare_weight"]


def prepare_weight(weight: Tensor) -> Tensor:
    """Return a weight in at least float32, detached and contiguous.

    Raises:
        TypeError: if it is not floating.
        ValueError: if it is not finite.
    """
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating, got {weight.dtype}")
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).contiguous()
    if not bool(weight.isfinite().all()):
        raise ValueError("weight must be finite, got NaN or infinite entries")
    return weight


def prepare_fit(
    weight: Tensor, metric: Metric | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None, torch.Generator]:
    """Return the weight in at least float32, the weights of its errors, and a generator, checked.

    Args:
        weight: ``[*shape]``.
        metric: whose diagonal weighs the squared errors, or None.
        generator: of the caller, or None.

    Returns:
        The contiguous weight, the metric's diagonal ``[*shape]`` in the weight's dtype or None, and
        the generator, or one that is seeded with 0.

    Raises:
        TypeError: if the weight is not floating.
        ValueError: if the weight is not finite, or the metric does not fit it.
    """
    weight = prepare_weight(weight)
    importance = None
    if metric is not None:
        importance = metric.diagonal(tuple(weight.shape)).to(weight).contiguous()
    if generator is None:
        generator = torch.Generator(weight.device).manual_seed(0)
    return weight, importance, generator
