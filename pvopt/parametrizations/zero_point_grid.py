"""Grids of scalars whose levels are counted from a zero point, and products with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from pvopt_kernels import pack_rows, uniform_matmul, unpack_rows
from pvopt_kernels.packing import row_bytes

from .query import Query
from .representation import Representation
from .scalar_grid import ScalarGrid
from .storage import Storage

__all__ = ["ZeroPointGrid"]


class ZeroPointGrid(ScalarGrid):
    r"""Consecutive integers less a zero point, scaled per group of consecutive inputs.

    .. math:: w = s_g\,(q - z_g)
    """

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

    def _steps_of(self, rep: Representation, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return step and zero point of each group of one weight, ``[n, 1]`` each."""
        step, zero = self.step_and_zero(rep.values, rep.codes)
        if isinstance(zero, Tensor):
            steps, zeros = self._of_groups(rep, (step, zero), groups)
            return steps, zeros
        (steps,) = self._of_groups(rep, (step,), groups)
        return steps, step.new_full((1, 1), zero)

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


class _GridStorage(Storage):
    """Levels of scalar grids at their real width, row by row, as the kernels read them."""

    parametrization: ZeroPointGrid

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
