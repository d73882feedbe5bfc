"""Products with a packed uniform grid on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.reference.uniform_matmul import uniform_matmul as in_torch

from ._arrays import compiled, single
from ._blocks import multiply_blocks
from ._digits import has_fast_digits, multiply_by_digits
from .uniform_decode import THREAD_WEIGHTS, grid_arrays, uniform_decode

__all__ = ["uniform_matmul"]

# 4096 x 4096 and 4 bits on one core: 1, 4, 8 and 16 tokens take 3.4, 5.9, 9.1 and 16 ms row by row,
# 7.0, 10.1, 12.1 and 12.9 ms from decoded blocks.
_FUSED_TOKENS = 8


def uniform_matmul(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    columns: int,
    transposed: bool,
) -> Tensor:
    """Return the product; see :func:`pvopt_kernels.uniform_matmul`.

    A few tokens give the same bits for any number of threads; more are left to torch's product
    with decoded blocks of rows.
    """
    rows = len(packed)
    if not compiled(rows * columns * len(x)):
        return in_torch(x, packed, scales, zeros, bits, columns, transposed)
    if not transposed and has_fast_digits(len(x), scales, columns):
        return multiply_by_digits(x, packed, scales, zeros, bits, columns)
    if not transposed and len(x) <= _FUSED_TOKENS:
        return _from_codes(x, packed, scales, zeros, bits, columns)
    steps, points = scales.float(), None if zeros is None else zeros.float()

    def decode(block: slice, memory: Tensor) -> Tensor:
        shifts = None if points is None else points[block]
        return uniform_decode(packed[block], steps[block], shifts, bits, columns, memory)

    return multiply_blocks(x, decode, (rows, columns), transposed)


def _from_codes(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int
) -> Tensor:
    """Multiply every row as soon as it is decoded."""
    from ._compiled.uniform import LANES, uniform_matvec_kernel

    padding = -columns % LANES
    tokens = torch.nn.functional.pad(x.to(torch.float32), (0, padding))
    out = torch.empty(len(x), len(packed), dtype=torch.float32)
    arrays = grid_arrays(packed, scales, zeros, bits, columns)
    arrays += single(tokens), columns + padding, out.view(-1).numpy()
    least = max(1, THREAD_WEIGHTS // columns)
    uniform_matvec_kernel()(*arrays, size=len(packed), least=least)
    return out.to(x.dtype)
