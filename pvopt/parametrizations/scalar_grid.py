"""What grids of scalars share: a scale per group of inputs, decoding, the search, the brackets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, check_divides, matrix_shape
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_integer
from pvopt_kernels import pack_rows, uniform_matmul, unpack_rows
from pvopt_kernels.packing import row_bytes

from .contract import Parametrization
from .query import Candidates, Query
from .representation import Representation
from .storage import Storage

__all__ = ["ScalarGrid"]


class ScalarGrid(Parametrization):
    r"""Consecutive integers, scaled and shifted per group of consecutive inputs.

    .. math:: w = s_g\,(q - z_g), \qquad q \in \{0, \dots, K - 1\}

    Codes move weight by weight.
    """

    stacks = True
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

    def storage(self, shape: tuple[int, int]) -> Storage:
        return _GridStorage(self, shape)

    @abstractmethod
    def step_and_zero(
        self, values: Mapping[str, Tensor], codes: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | float]:
        """Return the distance of the levels and the zero point; differentiable in the values.

        Args:
            values: by name, as in a representation.
            codes: alike; those that V steps do not move.

        Returns:
            Step ``[rows, columns / group_size]``, and the zero point of that shape or for all.
        """

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        if self.group_size is not None:
            check_divides("group_size", self.group_size, shape)
        return GroupLayout(shape, 1, 1)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"scales": self._scale_shape(shape)}

    def value_columns(self, shape: tuple[int, ...]) -> int:
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

    def _spread(self, rep: Representation, value: Tensor, groups: Tensor | None) -> Tensor:
        """Return a value per scale for each group of one weight, ``[n, 1]``."""
        size = self._scale_size(rep.inner_shape)
        flat = value.flatten()
        if groups is None:
            return flat.repeat_interleave(size)[:, None]
        # Rows are contiguous and a multiple of the size: the flat index divides.
        return flat[groups.div(size, rounding_mode="floor")][:, None]

    def _steps_of(self, rep: Representation, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return step and zero point of each group of one weight, ``[n, 1]`` each."""
        step, zero = self.step_and_zero(rep.values, rep.codes)
        spread = self._spread(rep, step, groups)
        if isinstance(zero, Tensor):
            return spread, self._spread(rep, zero, groups)
        return spread, step.new_full((1, 1), zero)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Return ``step * (code - zero)``, ``[n, 1]``."""
        if codes is None:
            codes = rep.group_codes(groups)
        step, zero = self._steps_of(rep, groups)
        return step * (codes.to(step.dtype) - zero)

    def _position(self, query: Query) -> Tensor:
        """Return where the targets lie between the integers, ``[n, 1]``, not clipped."""
        step, zero = self._steps_of(query.rep, query.groups)
        # A scale of zero makes every level equal: any finite position will do.
        return torch.where(step == 0, zero, query.target / step + zero)

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


class _GridStorage(Storage):
    """Levels of scalar grids at their real width, row by row, as the kernels read them."""

    parametrization: ScalarGrid

    @property
    def _bits(self) -> int:
        return self.parametrization.streams(self.shape)["levels"].bits

    def empty(self, device: torch.device | str | None) -> dict[str, Tensor]:
        size = row_bytes(self.shape[1], self._bits)
        levels = torch.zeros(self.shape[0], size, dtype=torch.uint8, device=device)
        return {**super().empty(device), "levels": levels}

    def store(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        levels = pack_rows(codes["levels"].flatten(1), self._bits)
        return {**super().store(codes), "levels": levels}

    def read(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        levels = unpack_rows(stored["levels"], self._bits, self.shape[1])[..., None]
        return {"levels": levels, **self._read_fixed(stored)}

    def _read_fixed(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the codes that V steps do not move."""
        streams = self.parametrization.streams(self.shape).items()
        return {n: s.unpack(stored[n], check=False) for n, s in streams if not s.moves}

    def multiply(
        self, x: Tensor, stored: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Tensor:
        """Multiply without making the weight dense."""
        step, zero = self.parametrization.step_and_zero(values, self._read_fixed(stored))
        bits = self._bits
        if not isinstance(zero, Tensor):
            zero = None if zero == (1 << bits) // 2 else torch.full_like(step, zero)
        return uniform_matmul(x, stored["levels"], step, zero, bits=bits, columns=self.shape[1])

    @property
    def decodes(self) -> bool:
        return False
