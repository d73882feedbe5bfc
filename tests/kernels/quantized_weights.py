"""Random quantized weights, and what they decode to in float64 NumPy, entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMATS: dict[str, dict[str, Any]] = {
    "2x8g8": {"entries": 256},
    "one column": {"in_group": 1, "books": 1, "cols": 37},
    "ragged": {"in_group": 5, "books": 3, "rows": 7, "cols": 11, "entries": 13},
    "wide": {"in_group": 100, "cols": 3, "rows": 3},
    "blocks": {"in_group": 4, "out_group": 3, "scales": 3},
    "blocks of scales": {"in_group": 8, "out_group": 2, "scales": 6, "rows": 3},
    "many columns": {"cols": 200, "rows": 2},
    "16 bits": {"entries": 40000, "codes": torch.int16, "books": 1, "in_group": 2},
    "int8": {"entries": 256, "codes": torch.int8},
    "int32": {"codes": torch.int32},
    "int64": {"codes": torch.int64},
}


def read_codes(codes: Tensor) -> np.ndarray:
    """Read narrow signed codes as unsigned."""
    views = {torch.int8: np.uint8, torch.int16: np.uint16}
    array = codes.cpu().contiguous().numpy()
    return array.view(views.get(codes.dtype, array.dtype)).astype(np.int64)


@dataclass
class Books:
    """A weight of additive codebooks; ``args`` are those of the operations."""

    codes: Tensor
    codebooks: Tensor
    scales: Tensor
    out_group: int

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.codes, self.codebooks, self.scales

    def dense(self) -> Tensor:
        books, scales = (t.double().cpu().numpy() for t in self.args[1:])
        codes = read_codes(self.codes)
        rows, cols, num = codes.shape
        in_group = books.shape[2] // self.out_group
        weight = np.zeros((rows * self.out_group, cols * in_group))
        for i in range(rows):
            for j in range(cols):
                entry = sum(books[m, codes[i, j, m]] for m in range(num))
                entry = entry.reshape(self.out_group, in_group)
                scale = scales[i, j // (cols // scales.shape[1])]
                block = np.s_[i * self.out_group : (i + 1) * self.out_group]
                weight[block, j * in_group : (j + 1) * in_group] = scale * entry
        return torch.from_numpy(weight)


def draw_books(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: int = 5,
    cols: int = 6,
    books: int = 2,
    entries: int = 16,
    in_group: int = 8,
    out_group: int = 1,
    scales: int = 1,
    codes: torch.dtype = torch.uint8,
) -> Books:
    drawn = torch.randint(entries, (rows, cols, books), generator=generator)
    drawn[..., 0].flatten()[-1:] = entries - 1  # the last entry occurs
    table = torch.randn(books, entries, out_group * in_group, generator=generator)
    scale = torch.rand(rows, scales, generator=generator) + 0.5
    return Books(
        drawn.to(codes).to(device), table.to(device, dtype), scale.to(device, dtype), out_group
    )


@dataclass
class Grid:
    """A packed uniform grid."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int

    def dense(self) -> Tensor:
        codes, scales = self.codes.double().cpu().numpy(), self.scales.double().cpu().numpy()
        zeros = np.full_like(scales, 2 ** (self.bits - 1))
        if self.zeros is not None:
            zeros = self.zeros.double().cpu().numpy()
        size = codes.shape[1] // max(1, scales.shape[1])
        spread = [np.repeat(value, size, axis=1) for value in (scales, zeros)]
        return torch.from_numpy(spread[0] * (codes - spread[1]))


def draw_grid(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    *,
    bits: int,
    rows: int = 5,
    columns: int = 48,
    scales: int = 1,
    symmetric: bool = False,
) -> Grid:
    codes = torch.randint(2**bits, (rows, columns), generator=generator)
    scale = torch.rand(rows, scales, generator=generator) + 0.5
    zero = torch.rand(rows, scales, generator=generator) * 2**bits
    zeros = None if symmetric else zero.to(device, dtype)
    return Grid(codes.to(device), scale.to(device, dtype), zeros, bits)
