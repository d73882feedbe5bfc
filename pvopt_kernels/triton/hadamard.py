# pyright: reportGeneralTypeIssues=false
"""The Walsh-Hadamard transform by butterflies in registers, one pass per factor of the size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._compile_spec import CompileSpec
from ._launch import launch

__all__ = ["compile_specs", "hadamard"]

# Numbers of a program: 16 registers of each of 128 threads. A size above _LARGEST takes a pass over
# memory for each factor: 64 x 64 for 4096 move 16 bytes for a float32 number in place of 8, but a
# tile of 4096 would hold 32 registers and exchange them through shared memory twelve times.
_TILE = 2048
_LARGEST = 1024
_WARPS = 4


@triton.jit
def hadamard_kernel(
    x,
    y,
    lines,
    inner,
    scale,
    SIZE: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDED: tl.constexpr,  # inner > 1
):
    """Transform the middle axis of ``[outer, SIZE, inner]`` for ``BLOCK`` lines of it."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    line = start + tl.arange(0, BLOCK)
    here = line < lines
    if STRIDED:  # BLOCK divides inner, so the lines of a program are neighbours in memory
        first = start // inner * (SIZE * inner) + start % inner + tl.arange(0, BLOCK)
    else:
        first = line * SIZE
    at = first[:, None] + tl.arange(0, SIZE).to(tl.int64)[None, :] * inner  # [B, SIZE]
    value = tl.load(x + at, mask=here[:, None], other=0.0).to(tl.float32)
    for stage in tl.static_range(STAGES):
        pairs = tl.reshape(value, [BLOCK * SIZE // 2 ** (stage + 1), 2, 2**stage])
        low, high = tl.split(tl.permute(pairs, [0, 2, 1]))
        pairs = tl.permute(tl.join(low + high, low - high), [0, 2, 1])
        value = tl.reshape(pairs, [BLOCK, SIZE])
    tl.store(y + at, (value * scale).to(y.dtype.element_ty), mask=here[:, None])


def _factors(bits: int) -> list[int]:
    """Return exponents of near-equal factors, each at most that of ``_LARGEST``."""
    largest = _LARGEST.bit_length() - 1
    count = max(1, -(-bits // largest))
    return [bits * (i + 1) // count - bits * i // count for i in range(count)]


def hadamard(x: Tensor) -> Tensor:
    """Return the transform along the last axis, contiguous; see :func:`pvopt_kernels.hadamard`."""
    result = x.contiguous()
    size, inner = x.shape[-1], 1
    factors = _factors(size.bit_length() - 1)
    for number, bits in enumerate(factors):
        order = 1 << bits
        last = number == len(factors) - 1
        out = torch.empty(x.shape, dtype=x.dtype if last else torch.float32, device=x.device)
        lines = x.numel() // order
        block = max(1, _TILE // order)
        launch(
            hadamard_kernel,
            (triton.cdiv(lines, block),),
            x.device,
            result,
            out,
            lines,
            inner,
            order**-0.5,
            SIZE=order,
            STAGES=bits,
            BLOCK=block,
            STRIDED=inner > 1,
            num_warps=_WARPS,
        )
        result, inner = out, inner * order
    return result


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    specs = []
    variants = [("fp32", 6, True), ("bf16", 7, False), ("fp32", 10, False), ("fp16", 1, False)]
    for dtype, bits, strided in variants:
        signature = {"x": f"*{dtype}", "y": f"*{dtype}", "lines": "i32", "inner": "i32"}
        signature |= {"scale": "fp32"}
        constants = {"SIZE": 1 << bits, "STAGES": bits, "BLOCK": _TILE >> bits}
        constants["STRIDED"] = strided
        label = f"{dtype} {1 << bits}{' strided' if strided else ''}"
        specs.append(CompileSpec(hadamard_kernel, signature, constants, label, num_warps=_WARPS))
    return specs
