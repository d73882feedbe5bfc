"""Codes at their real width, row by row: what the kernels for uniform grids read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .checks import check_codes, check_integers, check_shape, check_tensors

__all__ = ["pack_rows", "row_bytes", "unpack_rows"]

_MAX_BITS = 24  # and 7 bits of shift: int32 holds 31


def row_bytes(columns: int, bits: int) -> int:
    """Return the bytes of one packed row, ``ceil(columns * bits / 8)``.

    Args:
        columns: codes of a row.
        bits: width of one code, 1 to 24.

    Raises:
        ValueError: if ``bits`` is out of range.

    Example:
        >>> from pvopt_kernels.packing import row_bytes
        >>> row_bytes(11, 3)
        5
    """
    check_integers(bits=bits, columns=columns)
    if not 1 <= bits <= _MAX_BITS:
        raise ValueError(f"bits must be in 1..{_MAX_BITS}, got {bits}")
    return -(-columns * bits // 8)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    r"""Pack each row of a matrix of codes into a stream of bits.

    .. math:: \text{code}_i = \sum_{j=0}^{b-1} 2^j\, \text{stream}_{ib+j}

    Bit ``n`` of a row's stream is bit ``n % 8`` (counted from the least significant) of its byte
    ``n // 8``; the last byte is filled up with zeros. Every row begins with a byte of its own:
    where 8 divides ``columns * bits``, all rows together are one stream without gaps.

    Args:
        codes: ``[rows, columns]``, any integer dtype, each in ``0 .. 2**bits - 1``; higher bits
            are dropped.
        bits: width ``b`` of one code, 1 to 24.

    Returns:
        ``[rows, ceil(columns * bits / 8)]`` uint8, on the codes' device.

    Raises:
        TypeError: if the codes are not integers.
        ValueError: if they are no matrix, or ``bits`` is out of range.

    Example:
        >>> import torch
        >>> from pvopt_kernels import pack_rows
        >>> pack_rows(torch.tensor([[1, 2, 3]]), bits=2).tolist()  # 0b11_10_01
        [[57]]
    """
    check_tensors(codes=codes)
    check_codes(codes=codes)
    check_shape("codes", codes, "rows", "columns")
    columns = codes.shape[1]
    size = row_bytes(columns, bits)
    if columns % 8:
        codes = pad(codes, (0, -columns % 8))
    eights = codes.unflatten(1, (-(-columns // 8), 8))  # 8 codes are as many bytes as bits
    packed = torch.zeros(*eights.shape[:2], bits, dtype=torch.uint8, device=codes.device)
    for place in range(8):
        byte, shift, reach = _place(place, bits)
        # An eighth of the codes at a time is all that is ever wide.
        shifted = (eights[..., place].int() & ((1 << bits) - 1)) << shift
        for k in range(reach):
            packed[..., byte + k] |= ((shifted >> 8 * k) & 255).to(torch.uint8)
    return packed.flatten(1)[:, :size].contiguous()


def unpack_rows(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Read codes back from their rows of bits, the inverse of :func:`pack_rows`.

    Args:
        packed: ``[rows, ceil(columns * bits / 8)]`` uint8.
        bits: width of one code, 1 to 24.
        columns: codes of a row.

    Returns:
        ``[rows, columns]`` uint8 up to 8 bits, int32 beyond, on the same device.

    Raises:
        TypeError: if ``packed`` is not uint8.
        ValueError: if the sizes do not agree, or ``bits`` is out of range.

    Example:
        >>> import torch
        >>> from pvopt_kernels import unpack_rows
        >>> unpack_rows(torch.tensor([[57]], dtype=torch.uint8), bits=2, columns=3).tolist()
        [[1, 2, 3]]
    """
    check_tensors(packed=packed)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}")
    size = row_bytes(columns, bits)
    check_shape("packed", packed, "rows", size)
    rows = packed.shape[0]
    dtype = torch.uint8 if bits <= 8 else torch.int32
    eights = -(-columns // 8)
    if columns % 8:
        packed = pad(packed, (0, eights * bits - size))
    streams = packed.view(rows, eights, bits)
    codes = torch.empty(rows, eights, 8, dtype=dtype, device=packed.device)
    for place in range(8):
        byte, shift, reach = _place(place, bits)
        window = streams[..., byte].int()
        for k in range(1, reach):
            window |= streams[..., byte + k].int() << 8 * k
        codes[..., place] = (window >> shift) & ((1 << bits) - 1)
    return codes.flatten(1)[:, :columns].contiguous()


def _place(place: int, bits: int) -> tuple[int, int, int]:
    """Return first byte, shift in it and number of bytes touched of one of 8 codes."""
    byte, shift = divmod(place * bits, 8)
    return byte, shift, -(-(shift + bits) // 8)
