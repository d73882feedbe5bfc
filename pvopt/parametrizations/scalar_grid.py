"""What grids of scalars share: a scale per group of inputs, decoding, the search, the brackets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from .contract import Parametrization
from .candidates import Candidates
from .layout import GroupLayout, check_divides, matrix_shape
from .representation import Representation
from .validation import check_integer

__all__ = ["ScalarGrid"]


class ScalarGrid(Parametrization):
    r"""Consecutive integers, scaled and shifted per group of consecutive inputs.

    .. math:: w = s_g\,(q - z_g), \qquad q \in \{0, \dots, K - 1\}

    Codes move weight by weight.
    """

    group_size: int | None

    def __post_init__(self) -> None:
        if self.group_size is not None:
            check_integer("group_size", self.group_size, 1, 1 << 30)

    @property
    def max_code(self) -> int:
        """The largest integer, ``num_codes - 1``."""
        return self.num_codes - 1

    @abstractmethod
    def step_and_zero(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
        """Return the distance of the levels and the zero point; differentiable in the values.

        Args:
            values: by name, as in a representation.

        Returns:
            Step ``[rows, columns / group_size]``, and the zero point of that shape or for all.
        """

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Every weight has its own code; the groups that share a scale must divide the columns."""
        if self.group_size is not None:
            check_divides("group_size", self.group_size, shape)
        return GroupLayout(shape, 1, 1)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """One scale per group of inputs."""
        return {"scales": self._scale_shape(shape)}

    def _scale_size(self, shape: tuple[int, ...]) -> int:
        return self.group_size or matrix_shape(shape)[1]

    def value_columns(self, shape: tuple[int, ...]) -> int:
        """The inputs that share a scale."""
        return self._scale_size(shape)

    def _scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        rows, columns = matrix_shape(shape)
        return rows, columns // self._scale_size(shape)

    def _steps_of(self, rep: Representation, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return step and zero point of each group of one weight, ``[n, 1]`` each."""
        step, zero = self.step_and_zero(rep.values)
        size = self._scale_size(rep.shape)
        # Rows are contiguous and a multiple of the size: the flat index divides.
        index = None if groups is None else groups.div(size, rounding_mode="floor")

        def spread(value: Tensor) -> Tensor:
            flat = value.flatten()
            return (flat.repeat_interleave(size) if index is None else flat[index])[:, None]

        if isinstance(zero, Tensor):
            return spread(step), spread(zero)
        return spread(step), step.new_full((1, 1), zero)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Return ``step * (code - zero)``, ``[n, 1]``."""
        if codes is None:
            codes = rep.flat_codes if groups is None else rep.flat_codes[groups]
        step, zero = self._steps_of(rep, groups)
        return step * (codes.to(step.dtype) - zero)

    def _position(self, target: Tensor, rep: Representation, groups: Tensor | None) -> Tensor:
        """Return where the targets lie between the integers, ``[n, 1]``, not clipped."""
        step, zero = self._steps_of(rep, groups)
        # A scale of zero makes every level equal: any finite position will do.
        return torch.where(step == 0, zero, target / step + zero)

    def search(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int,
        *,
        metric: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Round the position; further candidates are the integers next to it on either side."""
        position = self._position(target, rep, groups)
        k = min(k, self.num_codes)
        # The k nearest integers are consecutive; they start at round(x - (k - 1) / 2).
        first = (position - (k - 1) / 2).round().clamp_(0, self.num_codes - k)
        window = torch.arange(k, device=target.device, dtype=position.dtype)
        return (first + window).long()[..., None]  # [n, k, 1]

    def bracket(self, target: Tensor, rep: Representation, groups: Tensor | None) -> Candidates:
        """Return the integers below and above each position."""
        below = self._position(target, rep, groups).floor()
        both = torch.stack([below, below + 1], dim=1)  # [n, 2, 1]
        codes = both.clamp_(0, self.max_code).long()
        return Candidates(codes, self._errors(target.to(rep.dtype), rep, groups, codes, None))
