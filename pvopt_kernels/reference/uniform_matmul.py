"""Products with a packed uniform grid: decode, then multiply."""

from __future__ import annotations

from torch import Tensor

from .uniform_decode import uniform_decode

__all__ = ["uniform_matmul"]


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
    weight = uniform_decode(packed, scales, zeros, bits, columns).to(x.dtype)
    return x @ (weight if transposed else weight.T)
