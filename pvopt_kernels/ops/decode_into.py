"""Dense weights from a stack of codes, codebooks and scales, into tensors that are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import check_list
from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_stack
from ._written import mark_written

__all__ = ["decode_into"]


def decode_into(
    outs: Sequence[Tensor],
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    *,
    out_group: int = 1,
) -> None:
    r"""Write the dense weights that a stack of codes, codebooks and scales stands for.

    .. math:: w_g \leftarrow s_g \sum_{m=1}^{M} C_m[z_{g,m}]

    Weight by weight what :func:`decode` returns, for all of them at once and without another
    tensor. Sums are taken in float32 (float64 for float64) and rounded once, to each tensor's own
    dtype. Tensors of one dtype that are contiguous are written together, others one by one.

    Args:
        outs: ``W`` tensors ``[rows * out_group, cols * g / out_group]``, floating, of any layout;
            no two may share memory.
        codes: ``[W, rows, cols, M]`` integers in ``0 .. K - 1``; int8 and int16 are read as
            unsigned.
        codebooks: ``[W, M, K, g]``, floating.
        scales: ``[W, rows, S]`` of the same dtype, with ``S`` a divisor of ``cols``.
        out_group: rows of a group; divides ``g``.

    Raises:
        ValueError: if numbers, shapes or devices do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import decode_into
        >>> books = torch.tensor([[[[0.0, 0.0], [1.0, 2.0]]], [[[3.0, 3.0], [4.0, 5.0]]]])
        >>> codes = torch.tensor([[[[1], [0]]], [[[1], [0]]]], dtype=torch.uint8)
        >>> weights = [torch.empty(1, 4), torch.empty(1, 4)]
        >>> decode_into(weights, codes, books, torch.tensor([[[0.5]], [[1.0]]]))
        >>> weights
        [tensor([[0.5000, 1.0000, 0.0000, 0.0000]]), tensor([[4., 5., 3., 3.]])]
    """
    shape = check_stack(codes, codebooks, scales, out_group)
    outs = list(outs)
    check_list("outs", outs, len(codes), shape, codes.device)
    call(_op, outs, codes, codebooks, scales, out_group)


@torch.library.custom_op("pvopt::decode_into", mutates_args={"outs"})
def _op(
    outs: list[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> None:
    check_code_values(codes, codebooks)
    implementation("decode_into", codebooks)(outs, codes, codebooks, scales, out_group)
    mark_written(outs)


@_op.register_fake
def _fake(
    outs: list[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> None:
    return None
