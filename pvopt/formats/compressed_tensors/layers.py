"""One layer in a file of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pvopt.formats.integer_grids import IntegerGrid, StoredGrid
from pvopt.formats.words import from_words, to_words

__all__ = ["PARTS", "read_layer", "write_layer"]

#: What the name of a layer is followed by.
PACKED = ".weight_packed"
PARTS = (PACKED, ".weight_scale", ".weight_shape", ".weight_zero_point")


def write_layer(layer: str, grid: IntegerGrid) -> dict[str, Tensor]:
    """Return the tensors of a layer by name.

    Integers lie without gaps in words of 32 bits, each row in words of its own; zero points alike,
    column by column.
    """
    tensors = {
        f"{layer}{PACKED}": to_words(grid.integers, grid.settings.bits),
        f"{layer}.weight_scale": grid.scales.detach().cpu().contiguous(),
        f"{layer}.weight_shape": torch.tensor(grid.integers.shape),
    }
    if grid.zeros is not None:
        columns = to_words(grid.zeros.T.contiguous(), grid.settings.bits)
        tensors[f"{layer}.weight_zero_point"] = columns.T.contiguous()
    return tensors


def read_layer(layer: str, settings: StoredGrid, tensors: Mapping[str, Tensor]) -> IntegerGrid:
    """Return a layer.

    Args:
        layer: its name.
        settings: how it is stored.
        tensors: of the file.

    Raises:
        KeyError: if a tensor is missing.
        ValueError: if one does not fit.
    """
    packed, scales = tensors[f"{layer}{PACKED}"], tensors[f"{layer}.weight_scale"]
    shape = tensors[f"{layer}.weight_shape"]
    if shape.shape != (2,) or shape.is_floating_point():
        raise ValueError(f"{layer}.weight_shape must be two integers, got {shape.tolist()}")
    rows, columns = shape.tolist()
    integers = from_words(packed, f"{layer}{PACKED}", settings.bits, rows, columns)
    groups = 1 if settings.group_size is None else columns // settings.group_size
    if tuple(scales.shape) != (rows, groups) or not scales.is_floating_point():
        raise ValueError(
            f"{layer}.weight_scale must be floats of shape {[rows, groups]}, "
            f"got {scales.dtype} of shape {list(scales.shape)}"
        )
    zeros = None
    if not settings.symmetric:
        name = f"{layer}.weight_zero_point"
        zeros = from_words(tensors[name].T, name, settings.bits, groups, rows).T.contiguous()
    return IntegerGrid(settings, integers, scales.clone(), zeros)
