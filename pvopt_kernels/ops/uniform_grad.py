"""Gradients of the scales and zero points of a uniform grid."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import check_floating, check_same_device, check_shape, check_tensors
from pvopt_kernels.dispatch import implementation

from ._grids import check_grid

__all__ = ["uniform_grad"]


def uniform_grad(
    gradient: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int
) -> tuple[Tensor, Tensor]:
    r"""Pull a dense gradient back to scales and zero points: backward of ``uniform_decode``.

    .. math:: \nabla_s = \sum_i \nabla_{w_i} (q_i - z), \qquad \nabla_z = -s \sum_i \nabla_{w_i}

    Sums are taken in float32 (float64 for float64) in a fixed order.

    Args:
        gradient: ``[rows, columns]``, floating.
        packed: ``[rows, ceil(columns * bits / 8)]`` uint8, see :func:`pack_rows`.
        scales: ``[rows, S]``, floating.
        zeros: ``[rows, S]`` of the same dtype; None stands for ``2**(bits - 1)``.
        bits: width of one code, 1 to 8.

    Returns:
        Gradients of scales and of zero points (of fixed ones too), of the scales' shape and dtype.

    Raises:
        ValueError: if shapes, devices or the width do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import pack_rows, uniform_grad
        >>> packed = pack_rows(torch.tensor([[0, 3]]), bits=2)
        >>> uniform_grad(torch.tensor([[1.0, 2.0]]), packed, torch.tensor([[0.5]]), None, bits=2)
        (tensor([[0.]]), tensor([[-1.5000]]))
    """
    check_tensors(gradient=gradient)
    check_floating(gradient=gradient)
    check_shape("gradient", gradient, "rows", "columns")
    check_grid(packed, scales, zeros, bits, gradient.shape[1])
    check_shape("gradient", gradient, packed.shape[0], "columns")
    check_same_device(gradient=gradient, packed=packed)
    return _op(gradient, packed, scales, zeros, bits)


@torch.library.custom_op("pvopt::uniform_grad", mutates_args=())
def _op(
    gradient: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int
) -> tuple[Tensor, Tensor]:
    run = implementation("uniform_grad", scales)
    of_scales, of_zeros = run(gradient, packed, scales, zeros, bits)
    return of_scales.to(scales.dtype), of_zeros.to(scales.dtype)


@_op.register_fake
def _fake(
    gradient: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int
) -> tuple[Tensor, Tensor]:
    return scales.new_empty(scales.shape), scales.new_empty(scales.shape)
