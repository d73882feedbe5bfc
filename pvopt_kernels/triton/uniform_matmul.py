"""Products with packed uniform grids, decoded in registers."""

from __future__ import annotations

from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._matmul import matmul_specs, multiply
from ._weights import grid_weight

__all__ = ["compile_specs", "uniform_matmul"]


def uniform_matmul(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    columns: int,
    transposed: bool,
) -> Tensor:
    """Return the product; see :func:`pvopt_kernels.uniform_matmul`."""
    return multiply(x, grid_weight(packed, scales, zeros, bits, columns), transposed)


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.grid
    return matmul_specs(
        {
            "bf16 2 bits": ("bf16", of("bf16", 2)),
            "fp32 3 bits": ("fp32", of("fp32", 3)),
            "fp16 4 bits, symmetric": ("fp16", of("fp16", 4, zeros=False)),
        }
    )
