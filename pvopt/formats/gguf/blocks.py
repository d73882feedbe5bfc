"""The block types of GGUF that keep what we tune: integers with a float16 scale per block."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .packing import Bits, Packing, Signed, Trits

__all__ = ["BLOCKS", "BlockType", "Blocks"]


@dataclass(frozen=True, eq=False)
class Blocks:
    r"""A matrix as blocks hold it.

    .. math:: w = d_g\,n + m_g \qquad \text{or} \qquad w = d_B\,\sigma_g\,n - m_B\,\mu_g

    Args:
        integers: ``[rows, columns]`` int16, the :math:`n`.
        scales: ``[rows, blocks in a row]`` float16, the :math:`d`.
        offsets: alike, the :math:`m`; None for zero.
        codes: of scales and offsets, the :math:`\sigma` and :math:`\mu`,
            ``[rows, groups in a row]`` uint8 each; None where there are none.
    """

    integers: Tensor
    scales: Tensor
    offsets: Tensor | None = None
    codes: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """One type of blocks.

    Args:
        name: as ggml calls it.
        number: in files.
        size: weights in a block.
        levels: the integers that it has.
        packing: of codes, which count the levels from the lowest on.
        offsets: whether blocks have an offset beside the scale.
        scales_last: whether scales follow the codes.
        nested: of blocks whose scales are codes: weights that share one, and its bits.
    """

    name: str
    number: int
    size: int
    levels: range
    packing: Packing
    offsets: bool = False
    scales_last: bool = False
    nested: tuple[int, int] | None = None

    @property
    def _codes(self) -> int:
        """Bytes of the codes of a block."""
        return self.packing.pack(torch.zeros(1, self.size, dtype=torch.uint8)).shape[1]

    @property
    def _plain(self) -> int:
        """Bytes of the codes, the scale and the offset of a block."""
        return self._codes + (4 if self.offsets else 2)

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return self._plain

    def pack(self, blocks: Blocks) -> Tensor:
        """Return rows of bytes, ``[rows, bytes of a row]`` uint8."""
        rows = len(blocks.integers)
        numbers = (blocks.integers - self.levels.start) // self.levels.step
        codes = self.packing.pack(numbers.to(torch.uint8).reshape(-1, self.size))
        scales = [blocks.scales] if blocks.offsets is None else [blocks.scales, blocks.offsets]
        halves = torch.stack(scales, -1).to(torch.float16).reshape(len(codes), -1)
        parts = [halves.view(torch.uint8), codes]
        return torch.cat(parts[::-1] if self.scales_last else parts, 1).reshape(rows, -1)

    def unpack(self, rows: Tensor) -> Blocks:
        """Return what rows of bytes hold.

        Raises:
            ValueError: if a code is none that the type has.
        """
        stored = rows.reshape(-1, self._plain)
        at = self._codes if self.scales_last else self._plain - self._codes
        first, last = stored[:, :at], stored[:, at:]
        codes, halves = (first, last) if self.scales_last else (last, first)
        numbers = self.packing.unpack(codes.contiguous())
        if int(numbers.max()) >= len(self.levels):
            raise ValueError(f"blocks of {self.name} have no code {int(numbers.max())}")
        integers = numbers.to(torch.int16) * self.levels.step + self.levels.start
        scales = (
            halves.contiguous().view(torch.float16).reshape(len(rows), -1, halves.shape[1] // 2)
        )
        return Blocks(
            integers.reshape(len(rows), -1),
            scales[..., 0].contiguous(),
            scales[..., 1].contiguous() if self.offsets else None,
        )


class KBlockType(BlockType):
    """Blocks that begin with a byte for each group: the codes of its scale and of its offset."""

    @property
    def _groups(self) -> int:
        assert self.nested is not None
        return self.size // self.nested[0]

    @property
    def bytes(self) -> int:
        return self._plain + self._groups

    def pack(self, blocks: Blocks) -> Tensor:
        assert blocks.codes is not None
        rows, (scales, offsets) = len(blocks.integers), blocks.codes
        both = (scales | offsets << 4).reshape(-1, self._groups)
        return torch.cat([both, super().pack(blocks).reshape(len(both), -1)], 1).reshape(rows, -1)

    def unpack(self, rows: Tensor) -> Blocks:
        stored = rows.reshape(-1, self.bytes)
        both = stored[:, : self._groups].reshape(len(rows), -1)
        plain = super().unpack(stored[:, self._groups :].reshape(len(rows), -1))
        return replace(plain, codes=(both & 15, both >> 4))


_TYPES = (
    BlockType(name="Q1_0", number=41, size=128, levels=range(-1, 2, 2), packing=Bits(1)),
    BlockType(
        name="TQ1_0",
        number=34,
        size=256,
        levels=range(-1, 2),
        packing=Trits(((32, 5), (16, 5), (4, 4))),
        scales_last=True,
    ),
    BlockType(
        name="TQ2_0",
        number=35,
        size=256,
        levels=range(-1, 2),
        packing=Bits(2, stride=32),
        scales_last=True,
    ),
    BlockType(name="Q2_0", number=42, size=64, levels=range(-1, 3), packing=Bits(2)),
    KBlockType(
        name="Q2_K",
        number=10,
        size=256,
        levels=range(4),
        packing=Bits(2, stride=32),
        offsets=True,
        scales_last=True,
        nested=(16, 4),
    ),
    BlockType(name="Q4_0", number=2, size=32, levels=range(-8, 8), packing=Bits(4, stride=16)),
    BlockType(
        name="Q4_1",
        number=3,
        size=32,
        levels=range(16),
        packing=Bits(4, stride=16),
        offsets=True,
    ),
    BlockType(name="Q8_0", number=8, size=32, levels=range(-128, 128), packing=Signed()),
)

#: By name, those of fewer bits first.
BLOCKS: dict[str, BlockType] = {block.name: block for block in _TYPES}
