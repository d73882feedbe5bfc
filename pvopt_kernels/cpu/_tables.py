"""Products of a few tokens by tables of what every code contributes."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arrays import integers, single

__all__ = ["has_fast_tables", "multiply_by_tables"]

# Rows and codes of a row from which tables pay for their making, on one core and on two: 1024 rows
# of 384 codes take 0.19 ms (0.26 from the codebooks), 512 rows of 2752 codes on two cores 0.53
# (0.46).
_ROWS, _POSITIONS = 1024, 256
# Tokens one by one against a dense product of decoded blocks: for 4096 x 11008 and 2x8g8 a token
# takes 1.1 ms on two cores and 1.9 on one, decoded blocks 20 and 37 ms for 12 tokens, 17 and 30 for
# 16, a rounder number.
_TOKENS = 12


def has_fast_tables(tokens: int, codes: Tensor, scales: Tensor) -> bool:
    """Return whether :func:`multiply_by_tables` can multiply, and faster than others.

    Args:
        tokens: of the input.
        codes: ``[rows, cols, M]``.
        scales: ``[rows, S]``.
    """
    from ._compiled.byte_tables import can_permute_bytes

    return (
        tokens <= _TOKENS
        and codes.dtype in (torch.int8, torch.uint8)
        and len(codes) >= _ROWS
        and codes.shape[1] * codes.shape[2] >= _POSITIONS
        and scales.shape[1] == 1
        and can_permute_bytes()
    )


def multiply_by_tables(x: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    """Return the product ``[tokens, rows]``, token by token.

    Args:
        x: ``[tokens, cols * g]``; float32 or of half precision.
        codes: ``[rows, cols, M]`` of one byte, at least 64 rows of 64 codes.
        codebooks: ``[M, K, g]``.
        scales: ``[rows, 1]``.
    """
    from ._compiled.byte_tables import ENTRIES, POSITIONS, ROWS
    from ._compiled.table_matvec import table_matvec_kernel

    rows, cols, number = codes.shape
    codebooks = codebooks[:, :ENTRIES]  # a byte names no others
    _, entries, group_size = codebooks.shape
    # 16 bits are off by 6e-5 of the output's norm, a fortieth of what bfloat16 rounds it by and a
    # fifth of what float16 does; 23 bits by 5e-7, as float32 sums are.
    planes = 3 if x.dtype == torch.float32 else 2
    blocks = -(-cols * number // POSITIONS)
    tables = torch.empty(blocks * POSITIONS * planes * ENTRIES, dtype=torch.uint8)
    out = torch.empty(len(x), rows)
    kernel = table_matvec_kernel(planes)
    arrays = integers(codes), single(codebooks), entries, group_size, number, single(scales)
    for token, result in zip(single(x).reshape(x.shape), out.numpy(), strict=True):
        kernel(token, *arrays, tables.numpy(), result, size=-(-rows // ROWS))
    return out.to(x.dtype)
