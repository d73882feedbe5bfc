"""Streams of codes: what one kind of code of a weight is, and how it is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt_kernels import pack_rows, unpack_rows

from .validation import check_bool, check_integer

__all__ = ["CodeStream"]

# Wider than a byte is int32 rather than uint16, which lacks index_put in torch.
_BYTE, _WIDE = torch.uint8, torch.int32
_MAX_CODES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class CodeStream:
    r"""One kind of code of a weight, at its own width.

    A stream of ``K`` different codes takes :math:`\lceil c \log_2 K \rceil` bits for each word of
    ``c`` codes, the digits of one number of base ``K``:

    .. math:: \text{word}_i = \sum_{j=0}^{c-1} K^j\, \text{code}_{ic+j}

    Packing, range checks and the true bits of a weight follow from its streams.

    Args:
        shape: of the tensor of codes. Streams that move have shape ``[rows, cols, n]``: ``n``
            codes for the group in block row ``i`` and block column ``j`` of the layout.
        num_codes: ``K``; codes are integers in ``0 .. K - 1``, at most 2^24 different ones.
        codes_per_word: ``c``. More than 1 saves where ``K`` is not a power of two: five codes of
            three kinds fit a byte (3^5 = 243), 1.6 bits each in place of 2.
        moves: whether V steps change the codes; otherwise only starts write them.

    Raises:
        TypeError: if a count is not an integer, or ``moves`` not a bool.
        ValueError: if a count is out of range, or a stream that moves is not three-dimensional.

    Example:
        >>> import torch
        >>> from pvopt import CodeStream
        >>> stream = CodeStream(shape=(1, 6, 1), num_codes=3, codes_per_word=5)
        >>> stream.bits, stream.word_bits, stream.stored_bits  # two words of a byte
        (2, 8, 16)
        >>> codes = torch.tensor([2, 0, 1, 1, 0, 2], dtype=torch.uint8).view(1, 6, 1)
        >>> stream.pack(codes)  # 2 + 9 + 27, 2
        tensor([38,  2], dtype=torch.uint8)
        >>> torch.equal(stream.unpack(stream.pack(codes)), codes)
        True
    """

    shape: tuple[int, ...]
    num_codes: int
    codes_per_word: int = 1
    moves: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        check_integer("num_codes", self.num_codes, 1, _MAX_CODES)
        check_integer("codes_per_word", self.codes_per_word, 1, 24)
        check_bool("moves", self.moves)
        if self.word_bits > 24:
            raise ValueError(
                f"codes_per_word must leave words of at most 24 bits, got {self.codes_per_word} "
                f"codes of {self.num_codes} kinds"
            )
        if self.moves and len(self.shape) != 3:
            raise ValueError(f"a stream that moves must be [rows, cols, n], got {self.shape}")

    @property
    def count(self) -> int:
        """Number of codes."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Bits of a code by itself."""
        return max(1, (self.num_codes - 1).bit_length())

    @property
    def dtype(self) -> torch.dtype:
        """Integer dtype that the codes have in memory."""
        return _BYTE if self.bits <= 8 else _WIDE

    @property
    def word_bits(self) -> int:
        """Bits of a stored word of ``codes_per_word`` codes."""
        return max(1, (self.num_codes**self.codes_per_word - 1).bit_length())

    @property
    def stored_bits(self) -> int:
        """Bits that all codes take, packed."""
        return -(-self.count // self.codes_per_word) * self.word_bits

    @property
    def stored_bytes(self) -> int:
        """Bytes that all codes take, packed."""
        return -(-self.stored_bits // 8)

    def zeros(self, device: torch.device | str | None = None) -> Tensor:
        """Return codes of zero."""
        return torch.zeros(self.shape, dtype=self.dtype, device=device)

    def check(self, name: str, codes: Tensor) -> None:
        """Raise unless a tensor holds such codes.

        Args:
            name: of the stream, for the message.
            codes: of the stream's shape; several weights may lie one below the other.

        Raises:
            TypeError: if the codes are not integers.
            ValueError: if one is out of range.

        Example:
            >>> import torch
            >>> from pvopt import CodeStream
            >>> CodeStream(shape=(1, 1, 1), num_codes=3).check("levels", torch.tensor([[[3]]]))
            Traceback (most recent call last):
            ...
            ValueError: codes of 'levels' must be in 0..2, got 3..3
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise TypeError(f"codes of {name!r} must be integers, got {codes.dtype}")
        if codes.numel() == 0 or codes.is_meta:
            return
        if codes.dtype == torch.uint8 and self.num_codes == 256:  # there are no others
            return
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= self.num_codes:
            raise ValueError(
                f"codes of {name!r} must be in 0..{self.num_codes - 1}, got {low}..{high}"
            )

    def pack(self, codes: Tensor) -> Tensor:
        """Pack codes into words, and the words into a stream of bits without gaps.

        The last word and the last byte are filled up with zeros.

        Args:
            codes: of the stream's shape, in range.

        Returns:
            ``[stored_bytes]`` uint8 on the same device.
        """
        words = codes.reshape(1, -1)
        if self.codes_per_word > 1:
            padded = torch.nn.functional.pad(words, (0, -self.count % self.codes_per_word))
            digits = padded.view(-1, self.codes_per_word).unbind(1)
            words = torch.zeros(1, len(digits[0]), dtype=torch.int32, device=codes.device)
            for digit in reversed(digits):
                words.mul_(self.num_codes).add_(digit)
        return pack_rows(words, self.word_bits)[0]

    def unpack(self, packed: Tensor, *, check: bool = True) -> Tensor:
        """Read codes back, the inverse of :meth:`pack`.

        Args:
            packed: ``[stored_bytes]`` uint8.
            check: whether codes are looked at; False where they were before.

        Returns:
            Codes of the stream's shape and dtype, on the same device.

        Raises:
            TypeError: if ``packed`` is not uint8.
            ValueError: if its size does not fit, or a word or code is out of range.
        """
        if packed.dtype != torch.uint8:
            raise TypeError(f"packed must be uint8, got {packed.dtype}")
        if tuple(packed.shape) != (self.stored_bytes,):
            raise ValueError(
                f"packed must have shape [{self.stored_bytes}] for {self.count} codes of "
                f"{self.num_codes} kinds, got {list(packed.shape)}"
            )
        words = -(-self.count // self.codes_per_word)
        rest = unpack_rows(packed[None], self.word_bits, words)[0]
        if self.codes_per_word == 1:
            codes, wrong = rest, rest[:0]
            if check and self.num_codes < 1 << self.word_bits:
                wrong = rest >= self.num_codes
        else:
            rest = rest.int()
            digits = torch.empty(words, self.codes_per_word, dtype=self.dtype, device=rest.device)
            for digit in digits.unbind(1):
                digit.copy_(rest % self.num_codes)
                rest = rest.div(self.num_codes, rounding_mode="floor")
            codes, wrong = digits.view(-1)[: self.count], rest
        if check and bool(wrong.any()):
            raise ValueError(f"packed holds codes beyond {self.num_codes - 1}")
        return codes.reshape(self.shape)
