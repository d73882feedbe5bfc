"""Codes of a parametrization as packed words: single codes, or several as digits of one number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pvopt.parametrizations import (
    Incoherent,
    Parametrization,
    QuantizedNonzeros,
    QuantizedScales,
)

from .packing import pack, unpack

__all__ = ["pack_codes", "unpack_codes"]


def pack_codes(codes: Tensor, parametrization: Parametrization, shape: tuple[int, ...]) -> Tensor:
    r"""Pack codes into words of ``c`` digits of base ``K`` and the words into a stream of bits.

    .. math:: \text{word}_i = \sum_{j=0}^{c-1} K^j\, \text{code}_{ic+j}

    The last word is filled up with zeros; with ``c = 1`` words are codes. Where scales have codes
    too, theirs follow those of the groups; those of nonzeros follow those of the support.

    Args:
        codes: ``[rows, cols, codes_per_group]`` integers.
        parametrization: says ``K = num_codes`` and ``c = codes_per_word``.
        shape: of the dense weight.

    Returns:
        ``[ceil(words * word_bits / 8)]`` uint8, on the CPU.

    Raises:
        ValueError: if a code is out of range.

    Example:
        >>> from pvopt import Ternary
        >>> codes = torch.tensor([[[2], [0], [1], [1], [0], [2]]])
        >>> pack_codes(codes, Ternary(), (1, 6))  # 2 + 9 + 27, 2
        tensor([38,  2], dtype=torch.uint8)
    """
    if isinstance(parametrization, Incoherent):
        return pack_codes(codes, parametrization.inner, shape)
    parametrization.check_codes(codes, shape)
    if isinstance(parametrization, QuantizedScales):
        own, scales = parametrization.parts(codes, shape)
        packed = pack_codes(own, parametrization.inner, shape)
        return torch.cat([packed, pack(scales, parametrization.bits)])
    if isinstance(parametrization, QuantizedNonzeros):
        own, nonzeros = parametrization.parts(codes, shape)
        inner = parametrization.nonzero_shape(shape)
        both = (
            pack_codes(own, parametrization.support, shape),
            pack_codes(nonzeros, parametrization.inner, inner),
        )
        return torch.cat(both)
    per_word = parametrization.codes_per_word
    if per_word == 1:
        return pack(codes, parametrization.word_bits)
    flat = codes.detach().cpu().reshape(-1).int()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % per_word)).view(-1, per_word)
    words = torch.zeros(len(padded), dtype=torch.int32)
    for digit in reversed(padded.unbind(1)):
        words.mul_(parametrization.num_codes).add_(digit)
    return pack(words, parametrization.word_bits)


def unpack_codes(
    packed: Tensor, parametrization: Parametrization, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Read codes back from their words, the inverse of :func:`pack_codes`.

    Args:
        packed: uint8, as :func:`pack_codes` returns it.
        parametrization: of the codes.
        shape: of the dense weight.
        dtype: integer dtype of the result.

    Returns:
        ``[rows, cols, codes_per_group]`` codes in ``dtype``, on the CPU.

    Raises:
        TypeError: if ``packed`` is not uint8.
        ValueError: if the sizes do not agree, a code is out of range, or the dtype is too narrow.

    Example:
        >>> from pvopt import Ternary
        >>> packed = torch.tensor([38, 2], dtype=torch.uint8)
        >>> unpack_codes(packed, Ternary(), (1, 6), torch.uint8).flatten().tolist()
        [2, 0, 1, 1, 0, 2]
    """
    if isinstance(parametrization, Incoherent):
        return unpack_codes(packed, parametrization.inner, shape, dtype)
    if isinstance(parametrization, QuantizedScales):
        inner = parametrization.inner
        size = -(-inner.stored_code_bits(shape) // 8)
        count = math.prod(inner.value_shapes(shape)["scales"])
        scales = unpack(packed[size:], parametrization.bits, count, dtype)
        return parametrization.join(unpack_codes(packed[:size], inner, shape, dtype), scales)
    if isinstance(parametrization, QuantizedNonzeros):
        own, inner = parametrization.support, parametrization.nonzero_shape(shape)
        size = -(-own.stored_code_bits(shape) // 8)
        return parametrization.join(
            unpack_codes(packed[:size], own, shape, dtype),
            unpack_codes(packed[size:], parametrization.inner, inner, dtype),
            shape,
        )
    code_shape = parametrization.code_shape(shape)
    count = math.prod(code_shape)
    per_word, bits = parametrization.codes_per_word, parametrization.word_bits
    if per_word == 1:
        codes = unpack(packed, bits, count, dtype).view(code_shape)
        parametrization.check_codes(codes, shape)
        return codes
    words = unpack(packed, bits, -(-count // per_word), torch.int32)
    digits = torch.empty(len(words), per_word, dtype=dtype)
    for place in range(per_word):
        digits[:, place] = words % parametrization.num_codes
        words = words.div(parametrization.num_codes, rounding_mode="floor")
    if bool(words.any()):
        raise ValueError(f"packed holds words beyond {parametrization.num_codes}**{per_word} - 1")
    codes = digits.view(-1)[:count].reshape(code_shape)
    parametrization.check_codes(codes, shape)
    return codes
