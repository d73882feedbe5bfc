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

# For 4096 x 11008 and 2x8g8 on one core a token takes 3.8 ms from the codes; decoding takes 8 ms
# once, and the dense product is then bound by arithmetic.
_FUSED_TOKENS = 2


def matmul(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    transposed: bool,
) -> Tensor:
    """Return the product ``[tokens, out]``; see :func:`pvopt_kernels.matmul`.

    One or two tokens, or as many as tables of bytes take, give the same bits for any number of
    threads; more are left to torch's product with decoded blocks, which rounds differently on
    another number of threads.
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
        lambda block: decode(codes[block], books, spread[block], out_group),
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
