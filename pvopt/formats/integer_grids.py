"""Grids of integers with a scale per group: which of our formats are one, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.uniform_grid import UniformGrid

from .levels import Shift, levels_of

__all__ = ["IntegerGrid", "StoredGrid", "stored_grid"]


@dataclass(frozen=True, kw_only=True)
class StoredGrid:
    r"""How a file stores the codes of a format, as integers of some bits.

    .. math:: n = a q + c, \qquad w = s_g\,(n - z_g)

    Args:
        bits: of a stored integer, 2 to 8.
        group_size: inputs that share a scale; None stands for a whole row.
        symmetric: whether the zero point is :math:`2^{b-1}` for all.
        factor: :math:`a`.
        offset: :math:`c`.

    Example:
        >>> from pvopt.formats import StoredGrid
        >>> ternary = StoredGrid(bits=2, group_size=64, offset=1)
        >>> ternary.parametrization
        UniformGrid(bits=2, group_size=64, symmetric=True, integer_zeros=False)
    """

    bits: int
    group_size: int | None
    symmetric: bool = True
    factor: int = 1
    offset: int = 0

    @property
    def parametrization(self) -> UniformGrid:
        """The grid that holds whatever is stored so."""
        return UniformGrid(
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            integer_zeros=not self.symmetric,
        )


def stored_grid(parametrization: Parametrization) -> StoredGrid:
    """Return how the codes of a format are stored, in as few bits as its levels take.

    Raises:
        ValueError: if its weights are no integers times a scale; the message says why.
    """
    levels = levels_of(parametrization)
    if levels.shift in (Shift.ZEROS, Shift.OFFSETS):
        what = "zero points" if levels.shift == Shift.ZEROS else "offsets"
        raise ValueError(
            f"its {what} are no integers: take a symmetric grid (grid:...s) or one of integer "
            "zero points (grid:...z)"
        )
    symmetric, integers = levels.shift == Shift.NONE, levels.integers
    # Stored integers begin at 0, which symmetric ones count from minus half of all.
    half = 1 << max(-integers[0] - 1, integers[-1]).bit_length() if symmetric else 0
    bits = half.bit_length() if symmetric else integers[-1].bit_length()
    if bits == 1:
        raise ValueError("grids of one bit cannot be stored, two bits are the fewest")
    return StoredGrid(
        bits=bits,
        group_size=levels.group_size,
        symmetric=symmetric,
        factor=integers.step,
        offset=integers[0] + half,
    )


@dataclass(frozen=True, eq=False)
class IntegerGrid:
    """One weight as a file has it.

    Args:
        settings: how it is stored.
        integers: ``[out, in]``, from 0 on.
        scales: ``[out, in / group_size]``.
        zeros: alike, integers; None where the grid is symmetric.
    """

    settings: StoredGrid
    integers: Tensor
    scales: Tensor
    zeros: Tensor | None

    @classmethod
    def of(cls, rep: Representation) -> IntegerGrid:
        """Return what is to be stored for a representation."""
        settings = stored_grid(rep.parametrization)
        integers = rep.codes["levels"][..., 0].int() * settings.factor + settings.offset
        return cls(settings, integers, rep.values["scales"], rep.codes.get("zeros"))

    def representation(self) -> Representation:
        """Return codes and values of a grid.

        Raises:
            ValueError: if shapes do not fit, or an integer is out of range.
        """
        codes = {"levels": self.integers[..., None].to(torch.uint8)}
        if self.zeros is not None:
            codes["zeros"] = self.zeros.to(torch.uint8)
        shape = tuple(self.integers.shape)
        return Representation(self.settings.parametrization, codes, {"scales": self.scales}, shape)

    def decode(self) -> Tensor:
        """Return the dense weight by the formula, independently of any kernel."""
        size = self.integers.shape[1] // self.scales.shape[1]
        zeros: Tensor | int = 1 << (self.settings.bits - 1)
        if self.zeros is not None:
            zeros = self.zeros.repeat_interleave(size, 1).int()
        levels = (self.integers.int() - zeros).to(self.scales.dtype)
        return levels * self.scales.repeat_interleave(size, 1)
