"""Grids of integers with a scale per group: which of our formats are one, and back."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.parametrizations.binary import Binary
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.ternary import Ternary
from pvopt.parametrizations.uniform_grid import UniformGrid

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


@functools.singledispatch
def stored_grid(parametrization: Parametrization) -> StoredGrid:
    """Return how the codes of a format are stored.

    Raises:
        ValueError: if its weights are no integers times a scale; the message says why.
    """
    raise ValueError("only integers times a scale can be stored (grid, ternary, binary)")


@stored_grid.register
def _(parametrization: UniformGrid) -> StoredGrid:
    if not (parametrization.symmetric or parametrization.integer_zeros):
        raise ValueError(
            "its zero points are no integers: take a symmetric grid (grid:...s) or one of integer "
            "zero points (grid:...z)"
        )
    if parametrization.bits == 1:
        raise ValueError("grids of one bit cannot be stored, two bits are the fewest")
    return StoredGrid(
        bits=parametrization.bits,
        group_size=parametrization.group_size,
        symmetric=parametrization.symmetric,
    )


@stored_grid.register
def _(parametrization: Ternary) -> StoredGrid:
    return StoredGrid(bits=2, group_size=parametrization.group_size, offset=1)


@stored_grid.register
def _(parametrization: Binary) -> StoredGrid:
    # The scale is half of the distance between the two levels, -1 and 1.
    return StoredGrid(bits=2, group_size=parametrization.group_size, factor=2, offset=1)


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
