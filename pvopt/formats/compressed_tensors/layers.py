"""One layer in a file of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pvopt_kernels import pack_rows, unpack_rows

from .integer_grids import IntegerGrid, StoredGrid

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
        f"{layer}{PACKED}": _words(grid.integers, grid.settings.bits),
        f"{layer}.weight_scale": grid.scales.detach().cpu().contiguous(),
        f"{layer}.weight_shape": torch.tensor(grid.integers.shape),
    }
    if grid.zeros is not None:
        columns = _words(grid.zeros.T.contiguous(), grid.settings.bits)
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
    integers = _integers(packed, f"{layer}{PACKED}", settings.bits, rows, columns)
    groups = 1 if settings.group_size is None else columns // settings.group_size
    if tuple(scales.shape) != (rows, groups) or not scales.is_floating_point():
        raise ValueError(
            f"{layer}.weight_scale must be floats of shape {[rows, groups]}, "
            f"got {scales.dtype} of shape {list(scales.shape)}"
        )
    zeros = None
    if not settings.symmetric:
        name = f"{layer}.weight_zero_point"
        zeros = _integers(tensors[name].T, name, settings.bits, groups, rows).T.contiguous()
    return IntegerGrid(settings, integers, scales.clone(), zeros)


def _words(integers: Tensor, bits: int) -> Tensor:
    """Return rows of integers without gaps, ``[rows, ceil(columns * bits / 32)]`` int32."""
    stream = pack_rows(integers, bits).cpu()
    missing = -stream.shape[1] % 4
    return torch.nn.functional.pad(stream, (0, missing)).contiguous().view(torch.int32)


def _integers(words: Tensor, name: str, bits: int, rows: int, columns: int) -> Tensor:
    """Return ``[rows, columns]`` integers, the inverse."""
    expected = [rows, -(-columns * bits // 32)]
    if rows < 1 or columns < 1 or list(words.shape) != expected or words.dtype != torch.int32:
        raise ValueError(
            f"{name} must be int32 for {rows} x {columns} integers of {bits} bits, "
            f"got {words.dtype} of shape {list(words.shape)}"
        )
    stream = words.contiguous().view(torch.uint8)[:, : -(-columns * bits // 8)]
    return unpack_rows(stream.contiguous(), bits, columns)
