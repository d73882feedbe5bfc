"""Dense weights from codes: every program decodes a tile and writes it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._launch import launch
from ._lists import Listed, kind_of
from ._tiles import dense_of, piece_columns, source_of
from ._weights import Weight, codebook_weight

__all__ = [
    "compile_specs",
    "decode",
    "decode_kernel",
    "decode_specs",
    "write_dense",
    "write_listed",
]

# Weights of one program: 16 of each of its 128 threads, two stores of 16 bytes in half precision.
_TILE = 2048
_ROWS = 4
_WARPS = 4


@triton.jit
def decode_kernel(
    out,
    source,
    num_rows,
    columns,
    KIND: tl.constexpr,
    IN_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Decode a tile of ``BLOCK_R`` rows by ``BLOCK_C`` pieces and write it; of each weight."""
    w = tl.program_id(2).to(tl.int64)
    out = dense_of(out, w, KIND)
    source = source_of(source, w, num_rows, IN_GROUP, FORMAT, KIND)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    pieces = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    weight = TILE(source, rows, pieces, num_rows, columns, IN_GROUP, WIDTH, FORMAT)
    column, exists = piece_columns(pieces, columns, IN_GROUP, WIDTH)  # [C, W]
    at = rows.to(tl.int64)[:, None, None] * columns + column[None, :, :]
    mask = (rows < num_rows)[:, None, None] & exists[None, :, :]
    tl.store(out + at, weight.to(out.dtype.element_ty), mask=mask)


def _blocks(width: int) -> dict[str, int]:
    return {"BLOCK_R": _ROWS, "BLOCK_C": _TILE // _ROWS // width}


def write_dense(weight: Weight, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the dense weight of any format."""
    out = torch.empty(weight.rows, weight.columns, dtype=dtype, device=device)
    _launch_decode(weight, out, 1, None)
    return out


def write_listed(weight: Weight, dense: Listed) -> None:
    """Write the weights of a stack of codebooks to where the list says."""
    _launch_decode(weight, dense.addresses, len(dense.tensors), dense.kind)


def _launch_decode(weight: Weight, out: Tensor, count: int, kind: Any) -> None:
    blocks = _blocks(weight.constants["WIDTH"])
    grid = triton.cdiv(weight.rows, _ROWS), triton.cdiv(weight.pieces, blocks["BLOCK_C"]), count
    arguments = (out, weight.source, weight.rows, weight.columns)
    constants = weight.constants | blocks
    launch(decode_kernel, grid, out.device, *arguments, kind, **constants, num_warps=_WARPS)


def decode(codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int) -> Tensor:
    """Return the dense weight; see :func:`pvopt_kernels.decode`."""
    weight = codebook_weight(codes, codebooks, scales, out_group)
    return write_dense(weight, codebooks.dtype, codebooks.device)


def decode_specs(
    variants: dict[str, tuple[str, _variants.Variant]], *, stacked: bool = False
) -> list[CompileSpec]:
    """Return the specs of ``decode_kernel`` for labelled pairs of a dtype and a format."""
    specs = []
    for label, (dtype, (source, constants)) in variants.items():
        out = "*i64" if stacked else f"*{dtype}"
        signature = {"out": out, "source": source, "num_rows": "i32", "columns": "i32"}
        blocks = _blocks(constants["WIDTH"]) | {"KIND": kind_of(dtype) if stacked else None}
        specs.append(
            CompileSpec(decode_kernel, signature, constants | blocks, label, num_warps=_WARPS)
        )
    return specs


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.codebooks
    return decode_specs(
        {
            "fp32 2x8g8": ("fp32", of("fp32", 2, 256, 8)),
            "bf16 2x8g8": ("bf16", of("bf16", 2, 256, 8)),
            "fp16 1x16g8": ("fp16", of("fp16", 1, 65536, 8)),
            "fp32 1x8g1": ("fp32", of("fp32", 1, 256, 1)),
            "bf16 2x8g16o4": ("bf16", of("bf16", 2, 256, 16, out_group=4)),
            "fp32 4x8g100": ("fp32", of("fp32", 4, 256, 100)),
        }
    )
