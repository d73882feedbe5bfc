"""Products of activations with a quantized weight."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import check_floating, check_same_device, check_shape, check_tensors
from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_weight

__all__ = ["GRADIENT_BLOCK", "matmul"]

# The backward pass makes the dense gradient of so many weights at a time, a block of rows: 64 MiB
# in float32. Layers of SmolLM2 or 4096 x 4096 take one block, 4096 x 11008 three.
GRADIENT_BLOCK = 1 << 24


def matmul(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    *,
    out_group: int = 1,
    transposed: bool = False,
) -> Tensor:
    r"""Multiply by a quantized weight without keeping it dense.

    .. math:: y = x W^\top, \qquad W = \mathrm{decode}(z, C, s)

    On GPUs the weight is decoded in registers, tile by tile; on CPUs it is decoded for the call
    where there are many tokens. Sums are taken in float32 (float64 for float64); where a CPU
    permutes bytes (AVX-512 VBMI), a few tokens are multiplied in fixed point of 23 bits, of 16 for
    ``x`` of half precision. Differentiable in ``x``, codebooks and scales; the backward pass keeps
    no dense weight, and the dense gradient only of a block of rows at a time.

    Args:
        x: ``[..., columns]``, or ``[..., rows]`` if transposed; floating.
        codes: ``[block rows, cols, M]`` integers in ``0 .. K - 1`` (see :func:`decode`).
        codebooks: ``[M, K, g]``, floating, perhaps of another dtype than ``x``.
        scales: ``[block rows, S]`` of the codebooks' dtype.
        out_group: rows of a group; divides ``g``.
        transposed: whether to compute :math:`x W` in place of :math:`x W^\top`.

    Returns:
        ``[..., rows]``, or ``[..., columns]`` if transposed, in the dtype of ``x``.

    Raises:
        ValueError: if shapes or devices do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import matmul
        >>> books = torch.tensor([[[0.0, 0.0], [1.0, 2.0]]])
        >>> codes, scales = torch.tensor([[[1], [0]]]), torch.tensor([[3.0]])
        >>> matmul(torch.tensor([1.0, 1.0, 1.0, 1.0]), codes, books, scales)
        tensor([9.])
    """
    rows, columns = check_weight(codes, codebooks, scales, out_group)
    check_tensors(x=x)
    check_floating(x=x)
    flat = x.flatten(0, -2) if x.dim() > 1 else x.reshape(1, -1)
    check_shape("x", flat, "tokens", rows if transposed else columns)
    check_same_device(x=x, codes=codes)
    out = call(_op, flat, codes, codebooks, scales, out_group, transposed)
    return out.view(*x.shape[:-1], out.shape[1])


@torch.library.custom_op("pvopt::matmul", mutates_args=())
def _op(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    transposed: bool,
) -> Tensor:
    check_code_values(codes, codebooks)
    return implementation("matmul", x)(x, codes, codebooks, scales, out_group, transposed)


@_op.register_fake
def _fake(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    transposed: bool,
) -> Tensor:
    columns = codes.shape[1] * (codebooks.shape[2] // out_group)
    return x.new_empty(x.shape[0], columns if transposed else codes.shape[0] * out_group)


@torch.library.custom_op("pvopt::matmul_value_grad", mutates_args=())
def _value_grad(
    left: Tensor, right: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of codebooks and scales for the dense gradient ``left.T @ right``."""
    run = implementation("codebook_grad", codebooks)
    rows, columns = left.shape[1] // out_group, right.shape[1]
    step = max(1, GRADIENT_BLOCK // max(1, columns * out_group))
    exact = torch.promote_types(codebooks.dtype, torch.float32)
    books = torch.zeros_like(codebooks, dtype=exact)
    of_scales = torch.zeros_like(scales, dtype=exact)
    for first in range(0, rows, step):
        block = slice(first, first + step)
        gradient = left[:, first * out_group : (first + step) * out_group].T @ right
        part, of_scales[block] = run(gradient, codes[block], codebooks, scales[block], out_group)
        books += part
    return books.to(codebooks.dtype), of_scales.to(scales.dtype)


@_value_grad.register_fake
def _value_grad_fake(
    left: Tensor, right: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    return codebooks.new_empty(codebooks.shape), scales.new_empty(scales.shape)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.out_group, ctx.transposed = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, codes, codebooks, scales = ctx.saved_tensors
    of_x = of_books = of_scales = None
    if ctx.needs_input_grad[0]:
        of_x = _op(gradient, codes, codebooks, scales, ctx.out_group, not ctx.transposed)
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        pair = (x, gradient) if ctx.transposed else (gradient, x)
        of_books, of_scales = _value_grad(*pair, codes, codebooks, scales, ctx.out_group)
    return of_x, None, of_books, of_scales, None, None


_op.register_autograd(_backward, setup_context=_setup)
