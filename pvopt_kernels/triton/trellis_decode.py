# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Weights of sequences of symbols: every weight reads its own window."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._compile_spec import CompileSpec
from ._launch import launch

__all__ = ["compile_specs", "trellis_decode"]

# Steps of a program, four for each of its threads.
_STEPS = 512
_WARPS = 4


@triton.jit
def trellis_decode_kernel(
    symbols,
    table,
    out,
    size,
    steps,
    SYMBOL_BITS: tl.constexpr,
    STATE_BITS: tl.constexpr,
    VALUES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Decode ``STEPS`` steps of all ``size`` ones, of sequences of ``steps`` each."""
    at = tl.program_id(0).to(tl.int64) * STEPS + tl.arange(0, STEPS)
    here = at < size
    step = at % steps
    first = at - step
    state = tl.zeros([STEPS], dtype=tl.int32)
    for back in tl.static_range((STATE_BITS + SYMBOL_BITS - 1) // SYMBOL_BITS):
        place = (step - back) % steps
        place = tl.where(place < 0, place + steps, place)
        symbol = tl.load(symbols + first + place, mask=here, other=0).to(tl.int32)
        state |= (symbol & ((1 << SYMBOL_BITS) - 1)) << (back * SYMBOL_BITS)
    state &= (1 << STATE_BITS) - 1
    for v in tl.static_range(VALUES):
        weight = tl.load(table + state * VALUES + v)
        tl.store(out + at * VALUES + v, weight, mask=here)


def trellis_decode(symbols: Tensor, table: Tensor, *, symbol_bits: int) -> Tensor:
    """Return weights ``[n, steps * V]``; see :func:`pvopt_kernels.trellis_decode`."""
    n, steps = symbols.shape
    values = table.shape[1]
    out = torch.empty(n, steps * values, dtype=table.dtype, device=table.device)
    launch(
        trellis_decode_kernel,
        (triton.cdiv(n * steps, _STEPS),),
        table.device,
        symbols.contiguous(),
        table.contiguous(),
        out,
        n * steps,
        steps,
        SYMBOL_BITS=symbol_bits,
        STATE_BITS=len(table).bit_length() - 1,
        VALUES=values,
        STEPS=_STEPS,
        num_warps=_WARPS,
    )
    return out


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    specs = []
    for codes, dtype, bits, state_bits, values in (
        ("u8", "bf16", 2, 16, 1),
        ("u8", "fp32", 3, 12, 1),
        ("i64", "fp16", 4, 12, 2),
    ):
        signature = {"symbols": f"*{codes}", "table": f"*{dtype}", "out": f"*{dtype}"}
        signature |= {"size": "i32", "steps": "i32"}
        constants = {
            "SYMBOL_BITS": bits,
            "STATE_BITS": state_bits,
            "VALUES": values,
            "STEPS": _STEPS,
        }
        label = f"{codes} {dtype} B={bits} L={state_bits} V={values}"
        specs.append(
            CompileSpec(trellis_decode_kernel, signature, constants, label, num_warps=_WARPS)
        )
    return specs
