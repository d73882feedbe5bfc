"""What grids with offsets share: the levels of a group begin at a number of its own."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.validation import check_integer

from .query import Query
from .representation import Representation
from .scalar_grid import ScalarGrid

__all__ = ["OffsetGrid"]


@dataclass(frozen=True, kw_only=True)
class OffsetGrid(ScalarGrid):
    r"""Integers of ``b`` bits, scaled and shifted per group of consecutive inputs.

    .. math:: w = s_g\,q + m_g, \qquad q \in \{0, \dots, 2^b - 1\}

    Args:
        bits: ``b``, 1 to 8.
        group_size: inputs that share a scale and an offset; None: a whole row.
    """

    bits: int
    group_size: int | None = None

    scaling: ClassVar[tuple[str, ...]] = ("scales", "offsets")

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, 8)
        super().__post_init__()

    @property
    def num_codes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 << self.bits

    @abstractmethod
    def _scales_and_offsets(self, rep: Representation, groups: Tensor | None) -> list[Tensor]:
        """Return scale and offset of weights, ``[n, 1]`` each."""

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Return ``scale * code + offset``, ``[n, 1]``, rounded once as in files."""
        if codes is None:
            codes = rep.group_codes(groups)
        scales, offsets = self._scales_and_offsets(rep, groups)
        return scales * codes.to(scales.dtype) + offsets

    def _position(self, query: Query) -> Tensor:
        scales, offsets = self._scales_and_offsets(query.rep, query.groups)
        # A scale of zero makes every level equal: any finite position will do.
        return torch.where(scales == 0, 0, (query.target - offsets) / scales)
