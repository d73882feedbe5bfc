"""Dense weights from packed uniform grids."""

from __future__ import annotations

from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._weights import grid_weight
from .decode import decode_specs, write_dense

__all__ = ["compile_specs", "uniform_decode"]


def uniform_decode(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int
) -> Tensor:
    """Return the dense weight; see :func:`pvopt_kernels.uniform_decode`."""
    weight = grid_weight(packed, scales, zeros, bits, columns)
    return write_dense(weight, scales.dtype, scales.device)


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.grid
    return decode_specs(
        {
            "bf16 2 bits": ("bf16", of("bf16", 2)),
            "fp32 3 bits": ("fp32", of("fp32", 3)),
            "fp16 4 bits, symmetric": ("fp16", of("fp16", 4, zeros=False)),
            "fp32 3 bits, odd groups": ("fp32", of("fp32", 3, per_piece=False)),
            "fp32 8 bits": ("fp32", of("fp32", 8)),
        }
    )
