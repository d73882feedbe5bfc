"""Stacks of random quantized weights, one by one the weights of ``quantized_weights``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from quantized_weights import Books, draw_books
from torch import Tensor

HALVES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "mixed dtypes", "transposed", "one of them strided")


@dataclass
class Stack:
    """Weights of one shape and format; ``args`` are those of the operations."""

    weights: list[Books]
    args: tuple[Tensor, Tensor, Tensor]
    out_group: int

    @property
    def shape(self) -> tuple[int, int]:
        (rows, cols, _), size = self.args[0].shape[1:], self.args[1].shape[3]
        return rows * self.out_group, cols * size // self.out_group

    def dense(self) -> list[Tensor]:
        return [weight.dense() for weight in self.weights]


def draw_stack(
    seed: int, device: torch.device, dtype: torch.dtype, count: int, **settings: Any
) -> Stack:
    source = torch.Generator().manual_seed(seed)
    weights = [draw_books(source, device, dtype, **settings) for _ in range(max(1, count))]
    args = tuple(torch.stack(part)[:count] for part in zip(*(w.args for w in weights), strict=True))
    return Stack(weights[:count], args, weights[0].out_group)


def lay_out(tensors: Sequence[Tensor], layout: str) -> list[Tensor]:
    """Return copies in a layout; those in other dtypes are rounded."""
    copies = [tensor.clone() for tensor in tensors]
    if layout == "mixed dtypes":
        return [t.to(HALVES[i % 3]) for i, t in enumerate(copies)]
    if layout == "transposed":
        return [t.T.contiguous().T for t in copies]
    if layout == "one of them strided" and copies:
        copies[-1] = torch.stack([copies[-1]] * 2, dim=-1)[..., 0]
    return copies


def with_guards(tensors: Sequence[Tensor], guard: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Put contiguous tensors between NaN; others stay."""
    return [guard(t) if t.is_contiguous() else t for t in tensors]
