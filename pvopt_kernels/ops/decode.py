"""Dense weights from codes, codebooks and scales."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_weight
from .codebook_grad import codebook_grad

__all__ = ["decode"]


def decode(codes: Tensor, codebooks: Tensor, scales: Tensor, *, out_group: int = 1) -> Tensor:
    r"""Return the dense weight that codes, codebooks and scales stand for.

    .. math:: w_g = s_g \sum_{m=1}^{M} C_m[z_{g,m}]

    Group ``(i, j)`` is the block of ``out_group`` rows and ``g / out_group`` columns in block row
    ``i`` and block column ``j``, its entries in row-major order. Sums are taken in float32
    (float64 for float64) and rounded once. Differentiable in codebooks and scales.

    Args:
        codes: ``[rows, cols, M]`` integers in ``0 .. K - 1``; int8 and int16 are read as unsigned.
        codebooks: ``[M, K, g]``, floating.
        scales: ``[rows, S]`` of the same dtype, with ``S`` a divisor of ``cols``: one scale for
            ``cols / S`` neighbouring groups.
        out_group: rows of a group; divides ``g``.

    Returns:
        ``[rows * out_group, cols * g / out_group]`` of the codebooks' dtype.

    Raises:
        ValueError: if shapes or devices do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import decode
        >>> books = torch.tensor([[[0.0, 0.0], [1.0, 2.0]], [[0.0, 0.0], [4.0, 4.0]]])
        >>> codes = torch.tensor([[[1, 0], [1, 1]]], dtype=torch.uint8)
        >>> decode(codes, books, torch.tensor([[0.5]]))
        tensor([[0.5000, 1.0000, 2.5000, 3.0000]])

    References:
        AQLM (arXiv 2401.06118), section 3.
    """
    check_weight(codes, codebooks, scales, out_group)
    return call(_op, codes, codebooks, scales, out_group)


@torch.library.custom_op("pvopt::decode", mutates_args=())
def _op(codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int) -> Tensor:
    check_code_values(codes, codebooks)
    return implementation("decode", codebooks)(codes, codebooks, scales, out_group)


@_op.register_fake
def _fake(codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int) -> Tensor:
    in_group = codebooks.shape[2] // out_group
    return codebooks.new_empty(codes.shape[0] * out_group, codes.shape[1] * in_group)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.out_group = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
    grads = codebook_grad(gradient, *ctx.saved_tensors, out_group=ctx.out_group)
    return None, *grads, None


_op.register_autograd(_backward, setup_context=_setup)
