"""How the codes of a block lie in bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Bits", "Packing", "Signed", "Trits"]


class Packing(ABC):
    """Between codes and bytes, block by block."""

    @abstractmethod
    def pack(self, codes: Tensor) -> Tensor:
        """Return bytes ``[blocks, n]`` of codes ``[blocks, size]``, uint8 both."""

    @abstractmethod
    def unpack(self, packed: Tensor) -> Tensor:
        """Return the codes, the inverse."""


@dataclass(frozen=True)
class Bits(Packing):
    """Codes of 1, 2 or 4 bits: those in a byte are some weights apart, the first lowest.

    Args:
        bits: of a code.
        stride: how far apart the weights of a byte are.

    Example:
        >>> import torch
        >>> from pvopt.formats.gguf.packing import Bits
        >>> Bits(4, stride=2).pack(torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8)).tolist()
        [[49, 66]]
    """

    bits: int
    stride: int = 1

    def _shifts(self) -> Tensor:
        return torch.arange(0, 8, self.bits, dtype=torch.uint8)[:, None]

    def pack(self, codes: Tensor) -> Tensor:
        places = codes.unflatten(1, (-1, 8 // self.bits, self.stride)) << self._shifts()
        return places.sum(2, dtype=torch.uint8).flatten(1)

    def unpack(self, packed: Tensor) -> Tensor:
        places = packed.unflatten(1, (-1, 1, self.stride)) >> self._shifts()
        return (places & ((1 << self.bits) - 1)).flatten(1)


class Signed(Packing):
    """Codes of 8 bits, as signed bytes whose zero is code 128."""

    def pack(self, codes: Tensor) -> Tensor:
        return codes ^ 128

    def unpack(self, packed: Tensor) -> Tensor:
        return packed ^ 128


@dataclass(frozen=True)
class Trits(Packing):
    r"""Codes 0, 1 and 2, five in a byte, as the leading digits of a fraction.

    .. math:: b = \left\lceil \tfrac{256}{243} \textstyle\sum_i 3^{4 - i} q_i \right\rceil

    Digits are read off without divisions: multiplied by a power of 3, with what overflows left
    out, a byte has the next digit in front.

    Args:
        parts: runs of bytes, and digits in each of their bytes; digits of a byte are as many
            weights apart as the run has bytes.
    """

    parts: tuple[tuple[int, int], ...]

    def pack(self, codes: Tensor) -> Tensor:
        packed, start = [], 0
        for size, digits in self.parts:
            part = codes[:, start : start + size * digits].unflatten(1, (digits, size))
            powers = torch.tensor([81, 27, 9, 3, 1][:digits], dtype=torch.int32)[:, None]
            number = (part * powers).sum(1, dtype=torch.int32)
            packed.append(((number * 256 + 242) // 243).to(torch.uint8))
            start += size * digits
        return torch.cat(packed, 1)

    def unpack(self, packed: Tensor) -> Tensor:
        codes, start = [], 0
        for size, digits in self.parts:
            powers = torch.tensor([1, 3, 9, 27, 81][:digits], dtype=torch.uint8)[:, None]
            left = packed[:, None, start : start + size] * powers  # modulo 256
            codes.append(((left.to(torch.int16) * 3) >> 8).to(torch.uint8).flatten(1))
            start += size
        return torch.cat(codes, 1)
