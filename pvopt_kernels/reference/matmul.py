"""Products with a quantized weight: decode, then multiply."""

from __future__ import annotations

from torch import Tensor

from .decode import decode

__all__ = ["matmul"]


def matmul(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    transposed: bool,
) -> Tensor:
    """Return ``x @ weight.T``, or ``x @ weight`` if transposed; see :func:`pvopt_kernels.matmul`.

    One product with the decoded weight: with many tokens its cost is that of the product alone.
    """
    weight = decode(codes, codebooks, scales, out_group).to(x.dtype)
    return x @ (weight if transposed else weight.T)
