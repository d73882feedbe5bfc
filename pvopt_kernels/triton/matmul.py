"""Products with additive codebooks, decoded in registers."""

from __future__ import annotations

from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._matmul import matmul_specs, multiply
from ._weights import codebook_weight

__all__ = ["compile_specs", "matmul"]


def matmul(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    transposed: bool,
) -> Tensor:
    """Return the product; see :func:`pvopt_kernels.matmul`."""
    return multiply(x, codebook_weight(codes, codebooks, scales, out_group), transposed)


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.codebooks
    return matmul_specs(
        {
            "fp32 2x8g8": ("fp32", of("fp32", 2, 256, 8)),
            "bf16 2x8g8": ("bf16", of("bf16", 2, 256, 8)),
            "fp16 1x16g8": ("fp16", of("fp16", 1, 65536, 8)),
            "fp32 1x8g100": ("fp32", of("fp32", 1, 256, 100)),
        }
    )
