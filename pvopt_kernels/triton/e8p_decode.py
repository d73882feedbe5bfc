"""Points of E8P: a table of absolute vectors, signs by arithmetic on the code's bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvopt_kernels.e8p_tables import NUM_EVEN

from ._compile_spec import CompileSpec
from ._e8p import absolute_table
from ._launch import launch

__all__ = ["compile_specs", "e8p_decode"]

# Groups of a program: 8 numbers for each of 128 threads, one store of 16 bytes in half precision.
_GROUPS = 128
_WARPS = 4


@triton.jit
def e8p_decode_kernel(codes, table, out, groups, NUM_EVEN: tl.constexpr, GROUPS: tl.constexpr):
    """Decode ``GROUPS`` pairs of bytes."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    here = group < groups
    vector = tl.load(codes + 2 * group, mask=here, other=0).to(tl.int32)
    sign = tl.load(codes + 2 * group + 1, mask=here, other=0).to(tl.int32)
    place = tl.arange(0, 8)[None, :]
    # The sign of the last place makes the number of minuses even, or odd for an odd vector.
    parity = sign & 127
    parity ^= parity >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    last = (parity ^ (vector >= NUM_EVEN).to(tl.int32)) & 1
    minus = tl.where(place < 7, (sign[:, None] >> place) & 1, last[:, None])
    size = tl.load(table + vector[:, None] * 8 + place)
    shift = ((sign >> 7) & 1).to(tl.float32) * 0.5 - 0.25
    point = tl.where(minus == 1, -size, size) + shift[:, None]
    at = out + group[:, None] * 8 + place
    tl.store(at, point.to(out.dtype.element_ty), mask=here[:, None])


def e8p_decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the points, ``[..., 8]``; see :func:`pvopt_kernels.e8p_decode`."""
    shape = (*codes.shape[:-1], 8)
    out = torch.empty(shape, dtype=dtype, device=codes.device)
    groups = out.numel() // 8
    unsigned = codes.contiguous()
    if codes.dtype == torch.int8:
        unsigned = unsigned.view(torch.uint8)
    launch(
        e8p_decode_kernel,
        (triton.cdiv(groups, _GROUPS),),
        codes.device,
        unsigned,
        absolute_table(codes.device),
        out,
        groups,
        NUM_EVEN=NUM_EVEN,
        GROUPS=_GROUPS,
        num_warps=_WARPS,
    )
    return out


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    specs = []
    for codes, dtype in (("u8", "bf16"), ("u8", "fp32"), ("i64", "fp16")):
        signature = {"codes": f"*{codes}", "table": "*fp32", "out": f"*{dtype}", "groups": "i32"}
        constants = {"NUM_EVEN": NUM_EVEN, "GROUPS": _GROUPS}
        label = f"{codes} {dtype}"
        specs.append(CompileSpec(e8p_decode_kernel, signature, constants, label, num_warps=_WARPS))
    return specs
