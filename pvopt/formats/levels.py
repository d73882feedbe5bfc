"""Formats whose weights are integers times a scale: which integers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum

from pvopt.parametrizations.affine_grid import AffineGrid
from pvopt.parametrizations.binary import Binary
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.nested_grid import NestedGrid
from pvopt.parametrizations.ternary import Ternary
from pvopt.parametrizations.uniform_grid import UniformGrid

__all__ = ["Levels", "Shift", "levels_of"]


class Shift(Enum):
    """What moves the levels of a group away from multiples of its scale, or along them."""

    NONE = "nothing"
    INTEGERS = "zero points that are integers"
    ZEROS = "zero points of any value"
    OFFSETS = "offsets that are added"


@dataclass(frozen=True, kw_only=True)
class Levels:
    r"""The integers that the weights of a format are, times a scale.

    .. math:: w = s_g\,(n - z_g) \qquad \text{or} \qquad w = s_g\,n + m_g

    Args:
        integers: all :math:`n` that there are; codes count them from the lowest on.
        group_size: inputs that share a scale; None stands for a whole row.
        shift: whether there is a :math:`z` or an :math:`m`.
        nested: if scales and offsets are codes times one of ``group_size`` inputs: the inputs that
            share a code, and its bits.
    """

    integers: range
    group_size: int | None
    shift: Shift = Shift.NONE
    nested: tuple[int, int] | None = None


@functools.singledispatch
def levels_of(parametrization: Parametrization) -> Levels:
    """Return the levels of a format.

    Raises:
        ValueError: if its weights are no integers times a scale.
    """
    raise ValueError(
        "only integers times a scale can be stored (grid, affine, nested, ternary, binary)"
    )


@levels_of.register
def _(parametrization: UniformGrid) -> Levels:
    count, size = 1 << parametrization.bits, parametrization.group_size
    if parametrization.symmetric:
        return Levels(integers=range(-count // 2, count // 2), group_size=size)
    shift = Shift.INTEGERS if parametrization.integer_zeros else Shift.ZEROS
    return Levels(integers=range(count), group_size=size, shift=shift)


@levels_of.register
def _(parametrization: AffineGrid) -> Levels:
    integers = range(1 << parametrization.bits)
    return Levels(integers=integers, group_size=parametrization.group_size, shift=Shift.OFFSETS)


@levels_of.register
def _(parametrization: NestedGrid) -> Levels:
    size = parametrization.group_size
    return Levels(
        integers=range(1 << parametrization.bits),
        group_size=size * parametrization.groups,
        shift=Shift.OFFSETS,
        nested=(size, parametrization.scale_bits),
    )


@levels_of.register
def _(parametrization: Ternary) -> Levels:
    return Levels(integers=range(-1, 2), group_size=parametrization.group_size)


@levels_of.register
def _(parametrization: Binary) -> Levels:
    return Levels(integers=range(-1, 2, 2), group_size=parametrization.group_size)
