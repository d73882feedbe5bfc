"""Which representations are blocks of GGUF, and back."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pvopt.formats.levels import Levels, Shift, levels_of
from pvopt.parametrizations.affine_grid import AffineGrid
from pvopt.parametrizations.binary import Binary
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.nested_grid import NestedGrid
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.ternary import Ternary
from pvopt.parametrizations.uniform_grid import UniformGrid

from .blocks import BLOCKS, Blocks, BlockType

__all__ = ["blocks_of", "fitting_type", "representation_of"]

# What each type is read as; levels of Q2_0 in the opposite order.
_READ_AS: dict[str, UniformGrid | Ternary | Binary | AffineGrid | NestedGrid] = {
    "Q1_0": Binary(group_size=128),
    "TQ1_0": Ternary(group_size=256),
    "TQ2_0": Ternary(group_size=256),
    "Q2_0": UniformGrid(bits=2, group_size=64, symmetric=True),
    "Q4_0": UniformGrid(bits=4, group_size=32, symmetric=True),
    "Q2_K": NestedGrid(bits=2, group_size=16, groups=16, scale_bits=4),
    "Q4_1": AffineGrid(bits=4, group_size=32),
    "Q8_0": UniformGrid(bits=8, group_size=32, symmetric=True),
}


def fitting_type(
    parametrization: Parametrization, columns: int, types: Collection[str] = tuple(BLOCKS)
) -> BlockType:
    """Return the first of some types whose blocks have the levels and the groups of a format.

    Args:
        parametrization: of a weight.
        columns: its inputs.
        types: names of block types.

    Raises:
        ValueError: if there is none; the message says why.
    """
    levels = levels_of(parametrization)
    if levels.shift == Shift.ZEROS:
        raise ValueError(
            "its zero points are no integers: take offsets (affine:...), integer zero points "
            "(grid:...z) or a symmetric grid (grid:...s)"
        )
    known = [block for block in map(BLOCKS.__getitem__, types) if _has(block, levels)]
    if not known:
        raise ValueError(f"no block type of {', '.join(types)} has its levels")
    size = levels.group_size or columns
    for block in known:
        if columns % block.size == 0 and size % block.size == 0:
            return block
    sizes = ", ".join(f"{block.name} of {block.size}" for block in known)
    raise ValueError(
        f"its groups of {size} inputs, of {columns}, are no multiples of the blocks that have its "
        f"levels ({sizes})"
    )


def _has(block: BlockType, levels: Levels) -> bool:
    integers, last = levels.integers, levels.integers[-1]
    if levels.shift == Shift.INTEGERS:  # less a zero point that is one of them
        integers = range(-last, last + 1)
    alike = block.nested == levels.nested and block.offsets == (levels.shift == Shift.OFFSETS)
    return alike and _sign(block, integers) != 0


def _sign(block: BlockType, integers: range) -> int:
    """Return whether integers are levels of a block (1), those with opposite signs (-1), or 0."""
    for sign in (1, -1):
        if {sign * integer for integer in integers} <= {*block.levels}:
            return sign
    return 0


def blocks_of(rep: Representation, block: BlockType) -> Blocks:
    """Return what is to be stored for a representation.

    Raises:
        ValueError: if a scale or an offset is none that float16 has.
    """
    levels = levels_of(rep.parametrization)
    integers = rep.codes["levels"][..., 0].to(torch.int16)
    if "zeros" in rep.codes:
        integers = integers - _spread(rep.codes["zeros"].to(torch.int16), integers.shape[1])
    else:
        integers = integers * levels.integers.step + levels.integers.start
    sign = _sign(block, levels.integers)
    number = integers.shape[1] // block.size
    halves = {name: _half(name, value, number) for name, value in rep.values.items()}
    offsets, codes = halves.get("offsets"), None
    if block.nested is not None and offsets is not None:  # what is subtracted there
        offsets, codes = -offsets, (rep.codes["scales"], rep.codes["offsets"])
    return Blocks(integers * sign, halves["scales"] * sign, offsets, codes)


def _spread(value: Tensor, columns: int) -> Tensor:
    """Return rows of one value per group as rows of more, smaller groups."""
    return value.repeat_interleave(columns // value.shape[1], 1)


def _half(name: str, value: Tensor, number: int) -> Tensor:
    half = value.detach().to(torch.float16)
    wrong = (half.to(value.dtype) != value) | ~half.isfinite()
    if bool(wrong.any()):
        example = float(value[wrong][0])
        raise ValueError(
            f"its {name} are no float16 numbers, which is what blocks hold (such as {example!r}): "
            "round them to float16 and decode the weight anew (pvopt export --dtype float16)"
        )
    return _spread(half, number)


def representation_of(block: BlockType, blocks: Blocks) -> Representation:
    """Return codes and values, in float32, as every reader of blocks decodes them.

    Raises:
        ValueError: if a scale or an offset is not finite.
    """
    parametrization = _READ_AS[block.name]
    levels = levels_of(parametrization)
    sign = _sign(block, levels.integers)
    integers = (blocks.integers * sign - levels.integers.start) // levels.integers.step
    values = {"scales": blocks.scales.float() * sign}
    if blocks.offsets is not None:
        values["offsets"] = blocks.offsets.float() * (1 if block.nested is None else -1)
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} of blocks of {block.name} are not finite")
    codes = {"levels": integers.to(torch.uint8)[..., None]}
    if blocks.codes is not None:
        codes |= dict(zip(("scales", "offsets"), blocks.codes, strict=True))
    return Representation(parametrization, codes, values, tuple(integers.shape))
