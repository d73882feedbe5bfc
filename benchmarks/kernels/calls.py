"""Calls of the operations, with random inputs of the sizes that the workloads count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.workloads import (
    GROUP,
    TILE,
    TRELLIS_BITS,
    TRELLIS_STATE_BITS,
    Layer,
    Work,
)
from pvopt_kernels import ops, trellis_table

__all__ = ["call_of"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class _Source:
    """Random tensors, the same ones in every run and on every device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, dtype)

    def codes(self, *shape: int, bits: int) -> Tensor:
        dtype = torch.uint8 if bits <= 8 else torch.int16
        codes = torch.randint(1 << bits, shape, generator=self.generator)
        return codes.to(dtype).to(self.device)


def call_of(layer: Layer, work: Work, device: torch.device) -> Callable[[], Tensor]:
    """Return a function that does some work once.

    Args:
        layer: the layer.
        work: one of its workloads.
        device: where the tensors are.

    Returns:
        The function; its result does not depend on the implementation but for rounding.

    Raises:
        KeyError: if there are no calls of the operation.
    """
    return _CALLS[work.operation](layer, _Source(device), **work.settings)


def _group_sq_norms(layer: Layer, source: _Source) -> Callable[[], Tensor]:
    target, weight = (source.normal(layer.rows, layer.columns) for _ in range(2))
    return lambda: ops.group_sq_norms(target, weight, out_group=1, in_group=GROUP)


def _decoded_sq_norms(layer: Layer, source: _Source) -> Callable[[], Tensor]:
    target = source.normal(layer.rows, layer.columns)
    weight = _books(layer, source, books=2, bits=8, dtype="fp32")
    stack = [part[None] for part in weight]
    return lambda: ops.decoded_sq_norms([target], *stack)[0]


def _gather_groups(layer: Layer, source: _Source, share: float) -> Callable[[], Tensor]:
    total = layer.weights // GROUP
    target = source.normal(layer.rows, layer.columns)
    order = torch.randperm(total, generator=source.generator)
    groups = order[: max(1, int(share * total))][None].to(source.device)
    return lambda: ops.gather_groups([target], groups, out_group=1, in_group=GROUP)


def _assign(layer: Layer, source: _Source, entries: int, share: float) -> Callable[[], Tensor]:
    target = source.normal(max(1, int(share * layer.weights / GROUP)), GROUP)
    codebook = source.normal(entries, GROUP)
    return lambda: ops.assign(target, codebook)[1]  # the errors: codes differ where they tie


def _beam_search(layer: Layer, source: _Source, share: float, beams: int) -> Callable[[], Tensor]:
    n = max(1, int(share * layer.weights / GROUP))
    target, books = source.normal(n, GROUP), source.normal(2, 256, GROUP)
    codes = source.codes(n, 2, bits=8)

    def run() -> Tensor:
        found = ops.beam_search(target, books, codes, 1, beam_size=beams, order=[0, 1])[:, 0]
        return target - books[0][found[:, 0]] - books[1][found[:, 1]]

    return run


def _books(
    layer: Layer, source: _Source, books: int, bits: int, dtype: str
) -> tuple[Tensor, Tensor, Tensor]:
    codes = source.codes(layer.rows, layer.columns // GROUP, books, bits=bits)
    values = source.normal(books, 1 << bits, GROUP, dtype=DTYPES[dtype])
    return codes, values, source.normal(layer.rows, 1, dtype=DTYPES[dtype])


def _decode(layer: Layer, source: _Source, **settings: Any) -> Callable[[], Tensor]:
    weight = _books(layer, source, **settings)
    return lambda: ops.decode(*weight)


def _codebook_grad(layer: Layer, source: _Source, **settings: Any) -> Callable[[], Tensor]:
    weight = _books(layer, source, **settings)
    gradient = source.normal(layer.rows, layer.columns)
    return lambda: ops.codebook_grad(gradient, *weight)[0]


def _matmul(
    layer: Layer, source: _Source, tokens: int, dtype: str, **settings: Any
) -> Callable[[], Tensor]:
    weight = _books(layer, source, dtype=dtype, **settings)
    x = source.normal(tokens, layer.columns, dtype=DTYPES[dtype])
    return lambda: ops.matmul(x, *weight)


def _uniform_matmul(
    layer: Layer, source: _Source, bits: int, dtype: str, zeros: bool
) -> Callable[[], Tensor]:
    packed = source.codes(layer.rows, layer.columns * bits // 8, bits=8)
    kind = DTYPES[dtype]
    per_row = max(1, layer.columns // 128)
    scales = source.normal(layer.rows, per_row, dtype=kind)
    shifts = source.normal(layer.rows, per_row, dtype=kind) if zeros else None
    x = source.normal(1, layer.columns, dtype=kind)
    columns = layer.columns
    return lambda: ops.uniform_matmul(x, packed, scales, shifts, bits=bits, columns=columns)


def _hadamard(layer: Layer, source: _Source) -> Callable[[], Tensor]:
    weight = source.normal(layer.rows, layer.columns)
    return lambda: ops.hadamard(weight)


def _e8p_decode(layer: Layer, source: _Source, dtype: str) -> Callable[[], Tensor]:
    codes = source.codes(layer.weights // GROUP, 2, bits=8)
    return lambda: ops.e8p_decode(codes, DTYPES[dtype])


def _e8p_assign(layer: Layer, source: _Source, share: float) -> Callable[[], Tensor]:
    target = source.normal(max(1, int(share * layer.weights / GROUP)), GROUP)
    # The errors: points at the same distance have different codes.
    return lambda: (target - ops.e8p_decode(ops.e8p_assign(target)[:, 0])).square().sum(1)


def _trellis_decode(layer: Layer, source: _Source) -> Callable[[], Tensor]:
    symbols = source.codes(layer.weights // TILE, TILE, bits=TRELLIS_BITS)
    table = trellis_table("mul1", TRELLIS_STATE_BITS)[:, None].to(symbols.device)
    return lambda: ops.trellis_decode(symbols, table, symbol_bits=TRELLIS_BITS)


def _trellis_search(layer: Layer, source: _Source, share: float) -> Callable[[], Tensor]:
    target = source.normal(max(1, int(share * layer.weights / TILE)), TILE)
    table = trellis_table("mul1", TRELLIS_STATE_BITS)[:, None].to(target)
    weights = torch.ones_like(target)

    def errors() -> Tensor:  # sequences at the same distance have different symbols
        found = ops.trellis_search(target, table, symbol_bits=TRELLIS_BITS, metric=weights)[:, 0]
        return (target - ops.trellis_decode(found, table, symbol_bits=TRELLIS_BITS)).square().sum(1)

    return errors


_CALLS: dict[str, Callable[..., Callable[[], Tensor]]] = {
    "assign": _assign,
    "beam_search": _beam_search,
    "codebook_grad": _codebook_grad,
    "decode": _decode,
    "decoded_sq_norms": _decoded_sq_norms,
    "e8p_assign": _e8p_assign,
    "e8p_decode": _e8p_decode,
    "gather_groups": _gather_groups,
    "group_sq_norms": _group_sq_norms,
    "hadamard": _hadamard,
    "matmul": _matmul,
    "trellis_decode": _trellis_decode,
    "trellis_search": _trellis_search,
    "uniform_matmul": _uniform_matmul,
}
