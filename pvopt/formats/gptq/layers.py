"""One layer in a file of GPTQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.formats.integer_grids import IntegerGrid, StoredGrid
from pvopt.formats.words import from_words, to_words
from pvopt.parametrizations.representation import Representation
from pvopt.spaces import Permutation

__all__ = ["PARTS", "GPTQGrid", "misfit", "read_layer", "write_layer"]

#: What the name of a layer is followed by.
WORDS = ".qweight"
PARTS = (WORDS, ".qzeros", ".scales", ".g_idx")


@dataclass(frozen=True, kw_only=True)
class GPTQGrid:
    """How a layer is stored.

    Args:
        grid: integers, scales and zero points.
        moving: whether the inputs of a group lie anywhere (``desc_act``).
        version: ``gptq`` stores zero points less one, ``gptq_v2`` as they are.
    """

    grid: StoredGrid
    moving: bool = False
    version: str = "gptq"


def misfit(shape: tuple[int, ...], bits: int) -> str | None:
    """Return why a weight cannot be cut into words, or None."""
    for number, name in zip(shape, ("outputs", "inputs"), strict=True):
        if number * bits % 32:
            return f"its {number} {name} of {bits} bits do not fill words of 32 bits"
    return None


def write_layer(layer: str, kind: GPTQGrid, rep: Representation) -> dict[str, Tensor]:
    """Return the tensors of a layer by name: words run along the inputs, down the columns."""
    grid, bits = IntegerGrid.of(rep), kind.grid.bits
    columns = grid.integers.shape[1]
    size = columns // grid.scales.shape[1]
    groups = torch.arange(columns, dtype=torch.int32) // size
    integers = grid.integers
    if kind.moving:
        places = rep.codes["space.order"].long().argsort().cpu()  # where an input is in the space
        groups, integers = groups[places], integers[:, places.to(integers.device)]
    zeros = grid.zeros
    if zeros is None:
        zeros = torch.full_like(grid.scales, 1 << (bits - 1), dtype=torch.int32)
    stored = zeros.int() - int(kind.version == "gptq")
    return {
        f"{layer}{WORDS}": to_words(integers, bits).T.contiguous(),
        f"{layer}.qzeros": to_words(stored.T.contiguous(), bits),
        f"{layer}.scales": grid.scales.detach().cpu().T.contiguous(),
        f"{layer}.g_idx": groups,
    }


def read_layer(layer: str, kind: GPTQGrid, tensors: Mapping[str, Tensor]) -> Representation:
    """Return codes and values of a layer.

    Args:
        layer: its name.
        kind: how it is stored.
        tensors: of the file.

    Raises:
        KeyError: if a tensor is missing.
        ValueError: if one does not fit.
    """
    grid = kind.grid
    words, zero_words, scales = (tensors[layer + part] for part in PARTS[:3])
    if words.dim() != 2 or scales.dim() != 2 or not scales.is_floating_point():
        raise ValueError(
            f"{layer}{WORDS} and scales must be matrices of integers and floats, got shapes "
            f"{list(words.shape)} and {list(scales.shape)} ({scales.dtype})"
        )
    rows, columns = words.shape[1], len(words) * 32 // grid.bits
    size = grid.group_size or columns
    if size > columns or columns % size or tuple(scales.shape) != (columns // size, rows):
        raise ValueError(
            f"{layer}.scales must have shape [{columns} / {size}, {rows}], got {list(scales.shape)}"
        )
    integers = from_words(words.T, f"{layer}{WORDS}", grid.bits, rows, columns)
    zeros = from_words(zero_words, f"{layer}.qzeros", grid.bits, len(scales), rows).T.int()
    zeros = zeros + int(kind.version == "gptq")
    half = 1 << (grid.bits - 1)
    if grid.symmetric and not bool((zeros == half).all()):
        raise ValueError(f"{layer}.qzeros must be {half} everywhere, as sym says")
    if int(zeros.max()) >= 1 << grid.bits:
        raise ValueError(f"{layer}.qzeros: a zero point of 2**{grid.bits} cannot be held")
    own = None if grid.symmetric else zeros.contiguous()
    order = _order(f"{layer}.g_idx", tensors.get(f"{layer}.g_idx"), columns, size)
    if order is not None:
        integers = integers[:, order]
    rep = IntegerGrid(grid, integers, scales.T.contiguous(), own).representation()
    if order is None:
        return rep
    space = Permutation()
    dtype = space.streams(rep.shape)["order"].dtype
    codes = {**rep.codes, "space.order": order.to(dtype)}
    return Representation(rep.parametrization, codes, rep.values, rep.shape, space)


def _order(name: str, groups: Tensor | None, columns: int, size: int) -> Tensor | None:
    """Return the inputs in the order of their groups, or None where they are in order."""
    if groups is None:
        return None
    if tuple(groups.shape) != (columns,) or groups.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name} must be {columns} integers, got {groups.dtype} of shape {list(groups.shape)}"
        )
    groups = groups.long()
    wanted = torch.arange(columns) // size
    if torch.equal(groups, wanted):
        return None
    order = groups.argsort(stable=True)
    if not torch.equal(groups[order], wanted):
        raise ValueError(f"{name} must name each group {size} times")
    return order
