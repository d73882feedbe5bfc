"""What grids of scalars share: a scale per group of inputs, the search, the brackets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, check_divides, matrix_shape
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_integer

from .contract import Parametrization
from .query import Candidates, Query
from .representation import Representation

__all__ = ["ScalarGrid"]


class ScalarGrid(Parametrization):
    r"""Consecutive integers, scaled and shifted per group of consecutive inputs.

    .. math:: w = s_g\,q + m_g, \qquad q \in \{0, \dots, K - 1\}

    Codes move weight by weight.
    """

    stacks = True
    common_values = ()
    pull_sums_all = True
    has_levels = True
    usual_start = "gptq"

    num_codes: ClassVar[int]
    codes_per_word: ClassVar[int] = 1
    group_size: int | None

    def __post_init__(self) -> None:
        if self.group_size is not None:
            check_integer("group_size", self.group_size, 1, 1 << 30)

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        rows, columns = matrix_shape(shape)
        levels = CodeStream(
            shape=(rows, columns, 1), num_codes=self.num_codes, codes_per_word=self.codes_per_word
        )
        return {"levels": levels}

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        if self.group_size is not None:
            check_divides("group_size", self.group_size, shape)
        return GroupLayout(shape, 1, 1)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"scales": self._scale_shape(shape)}

    def value_columns(self, shape: tuple[int, ...]) -> int | None:
        return self._scale_size(shape)

    def _scale_size(self, shape: tuple[int, ...]) -> int:
        """Return how many inputs share a scale."""
        return self.group_size or matrix_shape(shape)[1]

    def _scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        rows, columns = matrix_shape(shape)
        return rows, columns // self._scale_size(shape)

    def _represent(
        self, levels: Tensor, found: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Representation:
        """Return a representation of levels, and of what else was found, in any shape."""
        every = {"levels": levels, **found}
        codes = {
            name: every[name].reshape(stream.shape).to(stream.dtype)
            for name, stream in self.streams(shape).items()
        }
        values = {n: found[n].reshape(size) for n, size in self.value_shapes(shape).items()}
        return Representation(self, codes, values, shape)

    def _of_groups(
        self, rep: Representation, values: Iterable[Tensor], groups: Tensor | None
    ) -> list[Tensor]:
        """Return what a scale has one of, for each group of one weight: ``[n, 1]`` each."""
        size = self._scale_size(rep.inner_shape)
        if groups is None:
            return [value.flatten().repeat_interleave(size)[:, None] for value in values]
        # Rows are contiguous and a multiple of the size: the flat index divides.
        places = groups.div(size, rounding_mode="floor")
        return [value.flatten()[places][:, None] for value in values]

    @abstractmethod
    def _position(self, query: Query) -> Tensor:
        """Return where the targets lie between the integers, ``[n, 1]``, not clipped, not NaN."""

    def search(self, query: Query) -> Tensor:
        """Round the position; further candidates are the integers next to it on either side."""
        position = self._position(query)
        k = min(query.count, self.num_codes)
        # The k nearest integers are consecutive; they start at round(x - (k - 1) / 2).
        first = (position - (k - 1) / 2).round().clamp_(0, self.num_codes - k)
        window = torch.arange(k, device=position.device, dtype=position.dtype)
        return (first + window).long()[..., None]  # [n, k, 1]

    def bracket(self, query: Query) -> Candidates:
        below = self._position(query).floor()
        both = torch.stack([below, below + 1], dim=1)  # [n, 2, 1]
        codes = both.clamp_(0, self.num_codes - 1).long()
        return Candidates(codes, self.errors(query.but(metric=None), codes))
