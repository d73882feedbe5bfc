"""Checks that settings and inputs share; every message names the argument and what is allowed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_integer", "check_scale_group", "prepare_fit"]


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """Raise unless ``value`` is an integer in ``low .. high``.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, got {value}")


def prepare_fit(
    weight: Tensor, metric: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None, torch.Generator]:
    """Return the weight in at least float32, the metric alike, and a generator, all checked.

    Raises:
        TypeError: if the weight is not floating.
        ValueError: if the weight is not finite, or the metric has another shape or is negative.
    """
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating, got {weight.dtype}")
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).contiguous()
    if not weight.isfinite().all():
        raise ValueError("weight must be finite, got NaN or infinite entries")
    if metric is not None:
        metric = metric.detach().to(weight).contiguous()
        if metric.shape != weight.shape or not (metric >= 0).all():
            raise ValueError(
                f"metric must be non-negative and of shape {list(weight.shape)}, "
                f"got shape {list(metric.shape)} with minimum {metric.min().item():g}"
            )
    if generator is None:
        generator = torch.Generator(weight.device).manual_seed(0)
    return weight, metric, generator


def check_scale_group(scale_group: int | None, group_name: str, group_size: int) -> None:
    """Raise unless ``scale_group`` is None or a multiple of the group.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is no positive multiple.
    """
    if scale_group is None:
        return
    check_integer("scale_group", scale_group, 1, 1 << 30)
    if scale_group % group_size:
        raise ValueError(
            f"scale_group must be a multiple of {group_name}={group_size}, got {scale_group}"
        )
