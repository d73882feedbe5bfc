"""What every start does first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pvopt.core.layout import matrix_shape
from pvopt.metrics.contract import Metric

if TYPE_CHECKING:
    from .representation import Representation

__all__ = [
    "check_range",
    "prepare_fit",
    "prepare_weight",
    "usable_scales",
    "usual_size",
]

# Magnitudes up to these powers of ten, and down to their inverses, have squares whose sums and
# differences are exact enough.
_POWERS = {torch.float32: 12, torch.float64: 100}
# How far the decoded weight may leave the range of the dense one's dtype and be scaled down.
_NEAR = 1.02


def usual_size(shape: tuple[int, ...]) -> float:
    r"""Return how large weights of a shape usually are, where they do not say: as at their start.

    .. math:: \frac{1}{\sqrt{\text{columns}}}

    Args:
        shape: of the weight.
    """
    return matrix_shape(shape)[1] ** -0.5


def usable_scales(scales: Tensor, usual: float) -> Tensor:
    """Return scales with others in place of those that are zero: nothing could move them.

    Args:
        scales: non-negative.
        usual: what to take if all are zero; otherwise the mean of the positive ones.
    """
    positive = scales > 0
    count = positive.sum()
    mean = torch.where(count > 0, scales.sum() / count.clamp(min=1), usual)
    return torch.where(positive, scales, mean)


def prepare_weight(weight: Tensor) -> Tensor:
    """Return a weight in at least float32, detached and contiguous.

    Raises:
        TypeError: if it is not floating.
        ValueError: if it is not finite, or its squares would not be.
    """
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating, got {weight.dtype}")
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).contiguous()
    if not bool(weight.isfinite().all()):
        raise ValueError("weight must be finite, got NaN or infinite entries")
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    most = 10.0 ** _POWERS[weight.dtype]
    if largest and not 1 / most <= largest <= most:
        raise ValueError(
            f"weight must have a largest magnitude between {1 / most:g} and {most:g}, so that its "
            f"squares are accurate, got {largest:g}: rescale the layer"
        )
    return weight


def check_range(rep: Representation, weight: Tensor) -> None:
    """Scale a fitted weight down a little where it leaves the range of the dense one's dtype.

    Args:
        rep: of the weight, changed in place.
        weight: the dense weight, in its own dtype.

    Raises:
        ValueError: if more than a little would be needed.
    """
    limit = torch.finfo(weight.dtype).max
    if limit > 1e30:  # single precision, whose largest magnitudes are refused
        return
    largest = float(rep.decode().abs().max())
    if largest <= limit:
        return
    if largest > _NEAR * limit:
        raise ValueError(
            f"weight must leave room in {weight.dtype}: what is nearest to it has entries of "
            f"{largest:g}, beyond {limit:g}. Rescale the layer, or keep it in another dtype"
        )
    for name in rep.parametrization.scaling:
        rep.values[name].mul_(limit / largest * (1 - 2**-10))


def prepare_fit(
    weight: Tensor, metric: Metric | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None, torch.Generator]:
    """Return the weight in at least float32, the weights of its errors, and a generator, checked.

    Args:
        weight: ``[*shape]``.
        metric: whose diagonal weighs the squared errors, or None.
        generator: of the caller, or None.

    Returns:
        The contiguous weight, a multiple of the metric's diagonal ``[*shape]`` in its dtype or
        None, and the generator, or one that is seeded with 0.

    Raises:
        TypeError: if the weight is not floating.
        ValueError: if the weight is not finite, or the metric does not fit it.
    """
    weight = prepare_weight(weight)
    importance = None
    if metric is not None:
        diagonal = metric.diagonal(tuple(weight.shape))
        # Any positive multiple makes the same codes near; this one neither over- nor underflows.
        exponent = math.frexp(float(diagonal.max()))[1]
        importance = torch.ldexp(diagonal.double(), diagonal.new_tensor(-exponent)).to(weight)
        importance = importance.contiguous()
    if generator is None:
        generator = torch.Generator(weight.device).manual_seed(0)
    return weight, importance, generator
