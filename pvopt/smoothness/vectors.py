"""Vectors that are spread over the parameters of a model: one tensor for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Vector = list[Tensor]


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the inner product, summed over the tensors in float64."""
    parts = [(a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)]
    return sum(float(part) for part in parts)


def norm(vector: Sequence[Tensor]) -> float:
    """Return the Euclidean norm; the tensors' own norms are added in float64."""
    return sum(float(t.norm()) ** 2 for t in vector) ** 0.5


def difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> Vector:
    """Return ``left - right``."""
    return [a - b for a, b in zip(left, right, strict=True)]


def scale_(vector: Vector, factor: float) -> Vector:
    """Multiply in place and return the vector."""
    for tensor in vector:
        tensor.mul_(factor)
    return vector


def random_like(vector: Sequence[Tensor], generator: torch.Generator) -> Vector:
    """Return independent standard normal entries, drawn on the generator's device."""
    return [
        torch.randn(t.shape, generator=generator, dtype=t.dtype, device=generator.device).to(
            t.device
        )
        for t in vector
    ]
