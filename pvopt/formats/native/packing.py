"""Integer codes at their real width: a stream of bits without gaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["pack", "packed_size", "unpack"]

# Codes converted at once; a multiple of 8, because 8 codes of b bits fill b whole bytes.
_PIECE = 1 << 17
_MAX_BITS = 31


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that packed codes take, ``ceil(count * bits / 8)``.

    Args:
        count: number of codes.
        bits: width of one code, 1 to 31.

    Raises:
        ValueError: if ``bits`` is out of range.

    Example:
        >>> packed_size(3, 5)
        2
    """
    if not 1 <= bits <= _MAX_BITS:
        raise ValueError(f"bits must be in 1..{_MAX_BITS}, got {bits}")
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    r"""Pack integers into a stream of bits.

    .. math:: \text{code}_i = \sum_{j=0}^{b-1} 2^j\, \text{stream}_{ib+j}

    Bit ``n`` of the stream is bit ``n % 8`` (counted from the least significant) of byte
    ``n // 8``. The last byte is filled up with zeros.

    Args:
        codes: any shape and integer dtype, each in ``0 .. 2**bits - 1``; read in row-major order.
        bits: width ``b`` of one code, 1 to 31.

    Returns:
        ``[ceil(codes.numel() * bits / 8)]`` uint8, on the CPU.

    Raises:
        TypeError: if the codes are not integers.
        ValueError: if ``bits`` or a code is out of range.

    Example:
        >>> pack(torch.tensor([1, 2, 3]), bits=2).tolist()  # 0b11_10_01
        [57]
    """
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"codes must be integers, got {codes.dtype}")
    size = packed_size(codes.numel(), bits)
    flat = codes.detach().cpu().reshape(-1).numpy()
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >> bits):
        raise ValueError(
            f"codes must be in 0..{(1 << bits) - 1} to fit {bits} bits, "
            f"got {int(flat.min())}..{int(flat.max())}"
        )
    packed = np.empty(size, np.uint8)
    for start in range(0, flat.size, _PIECE):
        codes_of_8 = _rows(flat[start : start + _PIECE], 8).astype(np.int64)
        stream = np.zeros((len(codes_of_8), bits), np.uint8)
        for place, byte, shift, reach in _places(bits):
            shifted = codes_of_8[:, place] << shift
            for k in range(reach):
                stream[:, byte + k] |= (shifted >> 8 * k).astype(np.uint8)
        offset = start * bits // 8
        piece = packed[offset : offset + stream.size]
        piece[:] = stream.reshape(-1)[: piece.size]
    return torch.from_numpy(packed)


def unpack(packed: Tensor, bits: int, count: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Read codes back from their stream of bits, the inverse of :func:`pack`.

    Args:
        packed: ``[ceil(count * bits / 8)]`` uint8.
        bits: width of one code, 1 to 31.
        count: number of codes.
        dtype: integer dtype of the result, wide enough for the codes.

    Returns:
        ``[count]`` codes in ``dtype``, on the CPU.

    Raises:
        TypeError: if ``packed`` is not uint8.
        ValueError: if the sizes do not agree, or the dtype is too narrow for the width.

    Example:
        >>> unpack(torch.tensor([57], dtype=torch.uint8), bits=2, count=3).tolist()
        [1, 2, 3]
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}")
    size = packed_size(count, bits)
    if packed.shape != (size,):
        raise ValueError(
            f"packed must have shape [{size}] for {count} codes of {bits} bits, "
            f"got {list(packed.shape)}"
        )
    if torch.iinfo(dtype).max < (1 << bits) - 1:
        raise ValueError(f"dtype must hold {bits} bits, got {dtype}")
    source = packed.cpu().numpy()
    codes = torch.empty(count, dtype=dtype)
    target = codes.numpy()  # shares the memory
    for start in range(0, count, _PIECE):
        offset = start * bits // 8
        stream = _rows(source[offset : offset + _PIECE * bits // 8], bits)
        codes_of_8 = np.empty((len(stream), 8), np.int32)
        for place, byte, shift, reach in _places(bits):
            window = np.zeros(len(stream), np.int64)
            for k in range(reach):
                window |= stream[:, byte + k].astype(np.int64) << 8 * k
            codes_of_8[:, place] = (window >> shift) & ((1 << bits) - 1)
        piece = target[start : start + _PIECE]
        piece[:] = codes_of_8.reshape(-1)[: piece.size]
    return codes


def _places(bits: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield place, first byte, shift in it and number of bytes touched of each of 8 codes."""
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        yield place, byte, shift, -(-(shift + bits) // 8)


def _rows(flat: NDArray[Any], width: int) -> NDArray[Any]:
    """View an array as rows of a width, the last one filled up with zeros."""
    missing = -flat.size % width
    return (np.pad(flat, (0, missing)) if missing else flat).reshape(-1, width)
