"""Decoding a stack of weights into tensors that are given, on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pvopt_kernels.reference.decode_into import decode_into as in_torch

from ._arrays import MAX_GROUP, compiled, integers, single
from ._lists import Listed, listed

__all__ = ["decode_into", "decode_listed", "stack_arrays"]

# Bytes of weights that some cache may still have when they are read next.
_CACHED = 1 << 25
# Bytes of the smallest vector that processors write past their caches.
_LEAST_VECTOR = 16


def decode_into(
    outs: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> None:
    """Write the dense weights; see :func:`pvopt_kernels.decode_into`."""
    group_size = codebooks.shape[3]
    if not (compiled(codes[..., 0].numel() * group_size) and group_size <= MAX_GROUP):
        return in_torch(outs, codes, codebooks, scales, out_group)
    for dense in listed(outs, written=True):
        part = dense.part
        decode_listed(dense, codes[part], codebooks[part], scales[part], out_group)
    return None


def decode_listed(
    dense: Listed, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> None:
    """Write the weights of a stack that a compiled loop can write."""
    from ._compiled.decode import decode_kernel

    weights, rows, cols, number = codes.shape
    group_size = codebooks.shape[3]
    streamed = _is_streamed(dense, group_size // out_group, weights * rows * cols * group_size)
    kernel = decode_kernel(group_size, number, out_group, streamed)
    arrays = stack_arrays(codes, codebooks, scales)
    # 8192 groups take 18 us on one thread and on two, 16384 take 33 and 20.
    least = max(1, 4096 // (cols * out_group))
    kernel(*arrays, rows, dense.addresses, dense.kind, size=weights * rows, least=least)


def stack_arrays(codes: Tensor, codebooks: Tensor, scales: Tensor) -> tuple[object, ...]:
    """Return what the compiled loops over a stack read, in their order."""
    entries, row_scales = codebooks.shape[2], scales.shape[2]
    per_scale = codes.shape[2] // row_scales
    return integers(codes), single(codebooks), entries, single(scales), row_scales, per_scale


def _is_streamed(dense: Listed, in_group: int, count: int) -> bool:
    """Whether weights go past the caches: more than these hold, in whole vectors."""
    size = dense.kind.itemsize
    vector = in_group * size
    whole = vector >= _LEAST_VECTOR and vector & (vector - 1) == 0
    return count * size >= _CACHED and whole and not (dense.addresses % vector).any()
