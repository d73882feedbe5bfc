"""Products with a quantized weight on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.reference.matmul import matmul as in_torch

from ._arrays import MAX_GROUP, compiled, integers, single
from ._blocks import multiply_blocks
from ._tables import has_fast_tables, multiply_by_tables
from .decode import decode

__all__ = ["matmul"]

# For 4096 x 11008 and 2x8g8 a token takes 3.6 ms from the codes on one core and 1.9 on two, decoded
# blocks 26 and 14 ms for four tokens; for 1536 x 576 it is 0.09 and 0.07 against 0.47 and 0.28.
_FUSED_TOKENS = 4


def matmul(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    transposed: bool,
) -> Tensor:
    """Return the product ``[tokens, out]``; see :func:`pvopt_kernels.matmul`.

    A few tokens give the same bits for any number of threads; more are left to torch's product
    with decoded blocks, which rounds differently on another number of threads.
    """
    rows, cols = codes.shape[:2]
    group_size = codebooks.shape[2]
    if not (compiled(rows * cols * group_size * len(x)) and group_size <= MAX_GROUP):
        return in_torch(x, codes, codebooks, scales, out_group, transposed)
    if out_group == 1 and not transposed:
        if has_fast_tables(len(x), codes, scales):
            return multiply_by_tables(x, codes, codebooks, scales)
        if len(x) <= _FUSED_TOKENS and rows >= 4:
            return _from_codes(x, codes, codebooks, scales)
    books, spread = codebooks.to(torch.float32), scales.to(torch.float32)
    return multiply_blocks(
        x,
        lambda block, memory: decode(codes[block], books, spread[block], out_group, memory),
        (rows * out_group, cols * group_size // out_group),
        transposed,
        rows_per_unit=out_group,
    )


def _from_codes(x: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    """Multiply token by token, four rows of the weight at a time."""
    from ._compiled.matvec import matvec_kernel

    rows, cols, number = codes.shape
    _, entries, group_size = codebooks.shape
    kernel = matvec_kernel(group_size, number)
    row_scales = scales.shape[1]
    arrays = integers(codes), single(codebooks), entries, single(scales)
    arrays += row_scales, cols // row_scales
    out = torch.empty(len(x), rows, dtype=torch.float32)
    for token, result in zip(single(x).reshape(x.shape), out.numpy(), strict=True):
        kernel(token, *arrays, result, size=-(-rows // 4), least=max(1, 4096 // cols))
    return out.to(x.dtype)
