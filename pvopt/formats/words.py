"""Rows of integers of some bits, without gaps, in words of 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels import pack_rows, unpack_rows

__all__ = ["from_words", "to_words"]


def to_words(integers: Tensor, bits: int) -> Tensor:
    """Return rows of integers without gaps, ``[rows, ceil(columns * bits / 32)]`` int32."""
    stream = pack_rows(integers, bits).cpu()
    missing = -stream.shape[1] % 4
    return torch.nn.functional.pad(stream, (0, missing)).contiguous().view(torch.int32)


def from_words(words: Tensor, name: str, bits: int, rows: int, columns: int) -> Tensor:
    """Return ``[rows, columns]`` integers, the inverse.

    Raises:
        ValueError: if the words are not of that many integers; it names the tensor.
    """
    expected = [rows, -(-columns * bits // 32)]
    if rows < 1 or columns < 1 or list(words.shape) != expected or words.dtype != torch.int32:
        raise ValueError(
            f"{name} must be int32 for {rows} x {columns} integers of {bits} bits, "
            f"got {words.dtype} of shape {list(words.shape)}"
        )
    stream = words.contiguous().view(torch.uint8)[:, : -(-columns * bits // 8)]
    return unpack_rows(stream.contiguous(), bits, columns)
