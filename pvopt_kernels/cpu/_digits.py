"""Products of a few tokens with packed grids by integer products of bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arrays import single
from .uniform_decode import grid_arrays

__all__ = ["has_fast_digits", "multiply_by_digits"]

# Tokens one by one against a dense product of decoded blocks, on one core and on two: 4096 x 4096
# weights of 4 bits take 0.6 and 0.3 ms a token, blocks for 16 tokens 15 and 7.7 ms; 1536 x 576 take
# 0.06 and 0.04, blocks for eight tokens 0.37 and 0.23.
_TOKENS, _TOKENS_OF_SMALL = 16, 4
_SMALL = 1 << 22
# Weights that make another thread worth its start: 10 us of work on one, at 0.04 ns a weight.
_THREAD_WEIGHTS = 1 << 18


def has_fast_digits(tokens: int, scales: Tensor, columns: int) -> bool:
    """Return whether :func:`multiply_by_digits` can multiply, and faster than others.

    Args:
        tokens: of the input.
        scales: ``[rows, S]``.
        columns: of the weight.
    """
    from ._compiled.byte_products import CODES, can_multiply_bytes

    rows, row_scales = scales.shape
    most = _TOKENS_OF_SMALL if rows * columns < _SMALL else _TOKENS
    return tokens <= most and columns // row_scales % CODES == 0 and can_multiply_bytes()


def multiply_by_digits(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int
) -> Tensor:
    """Return the product ``[tokens, rows]``, token by token.

    Args:
        x: ``[tokens, columns]``; float32 or of half precision.
        packed: ``[rows, columns * bits / 8]`` uint8.
        scales: ``[rows, S]``, where ``columns / S`` is a multiple of 64.
        zeros: ``[rows, S]``, or ``None`` for ``2**(bits - 1)``.
        bits: width of a code, 1 to 8.
        columns: of the weight.
    """
    from ._compiled.byte_products import DIGITS
    from ._compiled.digit_matvec import digit_matvec_kernel

    codes, _, _, *grid = grid_arrays(packed, scales, zeros, bits, columns)
    digits = torch.empty(columns * DIGITS, dtype=torch.int8).numpy()
    out = torch.empty(len(x), len(packed))
    kernel = digit_matvec_kernel(bits)
    least = max(1, _THREAD_WEIGHTS // columns)
    for token, result in zip(single(x).reshape(x.shape), out.numpy(), strict=True):
        kernel(codes, token, *grid, digits, result, size=len(packed), least=least)
    return out.to(x.dtype)
