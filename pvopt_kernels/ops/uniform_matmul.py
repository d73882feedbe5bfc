"""Products of activations with a packed uniform grid."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import check_floating, check_same_device, check_shape, check_tensors
from pvopt_kernels.dispatch import implementation

from ._grids import check_grid
from .matmul import GRADIENT_BLOCK

__all__ = ["uniform_matmul"]


def uniform_matmul(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    *,
    bits: int,
    columns: int,
    transposed: bool = False,
) -> Tensor:
    r"""Multiply by a packed uniform grid without keeping its weight dense.

    .. math:: y = x W^\top, \qquad w_i = s_{g(i)}\,(q_i - z_{g(i)})

    As :func:`matmul`; differentiable in ``x``, scales and zero points. Where a CPU multiplies bytes
    (AVX-512 VNNI and VBMI) and a scale is for a multiple of 64 columns, a few tokens are multiplied
    in fixed point of 24 bits.

    Args:
        x: ``[..., columns]``, or ``[..., rows]`` if transposed; floating.
        packed: ``[rows, ceil(columns * bits / 8)]`` uint8, see :func:`pack_rows`.
        scales: ``[rows, S]``, floating, perhaps of another dtype than ``x``.
        zeros: ``[rows, S]`` of the scales' dtype; None stands for ``2**(bits - 1)``.
        bits: width of one code, 1 to 8.
        columns: of the weight.
        transposed: whether to compute :math:`x W` in place of :math:`x W^\top`.

    Returns:
        ``[..., rows]``, or ``[..., columns]`` if transposed, in the dtype of ``x``.

    Raises:
        ValueError: if shapes, devices or the width do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import pack_rows, uniform_matmul
        >>> packed = pack_rows(torch.tensor([[0, 1, 2, 3]]), bits=2)
        >>> x = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
        >>> uniform_matmul(x, packed, torch.tensor([[0.5]]), None, bits=2, columns=4)
        tensor([[0.]])
    """
    check_grid(packed, scales, zeros, bits, columns)
    check_tensors(x=x)
    check_floating(x=x)
    flat = x.flatten(0, -2) if x.dim() > 1 else x.reshape(1, -1)
    check_shape("x", flat, "tokens", packed.shape[0] if transposed else columns)
    check_same_device(x=x, packed=packed)
    out = _op(flat, packed, scales, zeros, bits, columns, transposed)
    return out.view(*x.shape[:-1], out.shape[1])


@torch.library.custom_op("pvopt::uniform_matmul", mutates_args=())
def _op(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    columns: int,
    transposed: bool,
) -> Tensor:
    run = implementation("uniform_matmul", x)
    return run(x, packed, scales, zeros, bits, columns, transposed)


@_op.register_fake
def _fake(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    columns: int,
    transposed: bool,
) -> Tensor:
    return x.new_empty(x.shape[0], columns if transposed else packed.shape[0])


@torch.library.custom_op("pvopt::uniform_matmul_value_grad", mutates_args=())
def _value_grad(
    left: Tensor, right: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of scales and zeros for the dense gradient ``left.T @ right``."""
    run = implementation("uniform_grad", scales)
    step = max(1, GRADIENT_BLOCK // max(1, right.shape[1]))
    grads = torch.empty_like(scales), torch.empty_like(scales)
    for first in range(0, len(packed), step):
        block = slice(first, first + step)
        gradient = left[:, block].T @ right
        part = None if zeros is None else zeros[block]
        found = run(gradient, packed[block], scales[block], part, bits)
        for whole, piece in zip(grads, found, strict=True):
            whole[block] = piece
    return grads


@_value_grad.register_fake
def _value_grad_fake(
    left: Tensor, right: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int
) -> tuple[Tensor, Tensor]:
    return scales.new_empty(scales.shape), scales.new_empty(scales.shape)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.bits, ctx.columns, ctx.transposed = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, packed, scales, zeros = ctx.saved_tensors
    of_x = of_scales = of_zeros = None
    if ctx.needs_input_grad[0]:
        of_x = _op(gradient, packed, scales, zeros, ctx.bits, ctx.columns, not ctx.transposed)
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        pair = (x, gradient) if ctx.transposed else (gradient, x)
        of_scales, of_zeros = _value_grad(*pair, packed, scales, zeros, ctx.bits)
    return of_x, None, of_scales, None if zeros is None else of_zeros, None, None, None


_op.register_autograd(_backward, setup_context=_setup)
