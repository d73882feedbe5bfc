"""Gradients of the scales and zero points of a uniform grid."""

from __future__ import annotations

from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._value_sums import value_sums, value_sums_specs
from ._weights import grid_weight

__all__ = ["compile_specs", "uniform_grad"]


def uniform_grad(
    gradient: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int
) -> tuple[Tensor, Tensor]:
    """Return both gradients in float32; see :func:`pvopt_kernels.uniform_grad`."""
    weight = grid_weight(packed, scales, zeros, bits, gradient.shape[1], scaled=False)
    products, sums = value_sums(gradient, weight, 1)
    return products, -scales.float() * sums


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.grid
    return value_sums_specs(
        {
            "bf16 2 bits": ("bf16", of("bf16", 2, scaled=False)),
            "fp32 3 bits, odd groups": ("fp32", of("fp32", 3, per_piece=False, scaled=False)),
            "fp16 4 bits, symmetric": ("fp16", of("fp16", 4, zeros=False, scaled=False)),
        }
    )
