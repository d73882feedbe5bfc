"""Gradients of codebooks and scales."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import check_floating, check_same_device, check_shape, check_tensors
from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_weight

__all__ = ["codebook_grad"]


def codebook_grad(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, *, out_group: int = 1
) -> tuple[Tensor, Tensor]:
    r"""Pull a dense gradient back to codebooks and scales: the backward pass of ``decode``.

    .. math:: \nabla_{C_m[k]} = \sum_{g:\ z_{g,m} = k} s_g \nabla_{w_g}, \qquad
        \nabla_{s} = \sum_{g} \langle \nabla_{w_g}, \sum_m C_m[z_{g,m}] \rangle

    Sums are taken in float32 (float64 for float64) in an order that depends on shapes and codes
    alone, without atomic operations: the same inputs give the same bits, on GPUs too. (The
    reference on a GPU is as deterministic as torch's ``scatter_add_``.)

    Args:
        gradient: ``[rows * out_group, cols * g / out_group]``, floating.
        codes: ``[rows, cols, M]`` integers in ``0 .. K - 1``.
        codebooks: ``[M, K, g]``, floating.
        scales: ``[rows, S]`` of the codebooks' dtype.
        out_group: rows of a group; divides ``g``.

    Returns:
        Gradients of the codebooks and of the scales, of their shapes and dtype.

    Raises:
        ValueError: if shapes or devices do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import codebook_grad
        >>> codes = torch.tensor([[[1], [1]]])
        >>> gradient = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> books = torch.tensor([[[0.0, 0.0], [1.0, -1.0]]])
        >>> codebook_grad(gradient, codes, books, torch.tensor([[0.5]]))
        (tensor([[[0., 0.],
                 [2., 3.]]]), tensor([[-2.]]))
    """
    shape = check_weight(codes, codebooks, scales, out_group)
    check_tensors(gradient=gradient)
    check_floating(gradient=gradient)
    check_shape("gradient", gradient, *shape)
    check_same_device(gradient=gradient, codes=codes)
    return call(_op, gradient, codes, codebooks, scales, out_group)


@torch.library.custom_op("pvopt::codebook_grad", mutates_args=())
def _op(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    check_code_values(codes, codebooks)
    run = implementation("codebook_grad", codebooks)
    books, of_scales = run(gradient, codes, codebooks, scales, out_group)
    return books.to(codebooks.dtype), of_scales.to(scales.dtype)


@_op.register_fake
def _fake(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    return codebooks.new_empty(codebooks.shape), scales.new_empty(scales.shape)
