"""How the circles of bits of a trellis lie in the words of a file."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["TILE", "WEIGHTS", "pack_tiles", "unpack_tiles"]

#: Rows and columns of a tile, and its weights.
TILE = 16
WEIGHTS = TILE * TILE


def pack_tiles(symbols: Tensor, bits: int) -> Tensor:
    """Return words ``[..., 16 * bits]`` int16 of symbols ``[..., 256]`` of some bits, uint8.

    A circle is written most significant bit first, in words of 32 bits.

    Example:
        >>> import torch
        >>> from pvopt.formats.exl3.tiles import pack_tiles
        >>> circle = torch.zeros(256, dtype=torch.uint8)
        >>> circle[0] = 1
        >>> pack_tiles(circle, 4)[:2].tolist()  # the first word is the high half of 32 bits
        [0, 4096]
    """
    circles = symbols.contiguous().cpu().numpy()[..., None]
    places = np.unpackbits(circles, axis=-1)[..., 8 - bits :]
    packed = np.packbits(places.reshape(*symbols.shape[:-1], -1), axis=-1)
    return torch.from_numpy(packed.view(">u4").astype("<u4").view("<i2"))


def unpack_tiles(words: Tensor, bits: int) -> Tensor:
    """Return the symbols, the inverse."""
    packed = words.contiguous().cpu().numpy().view("<u4").astype(">u4").view(np.uint8)
    places = np.unpackbits(packed, axis=-1).reshape(*words.shape[:-1], WEIGHTS, bits)
    return torch.from_numpy(np.packbits(places, axis=-1)[..., 0] >> (8 - bits))
