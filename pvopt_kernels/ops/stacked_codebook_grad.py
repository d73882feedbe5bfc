"""Gradients of the codebooks and scales of a stack of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import check_list
from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_stack

__all__ = ["stacked_codebook_grad"]


def stacked_codebook_grad(
    gradients: Sequence[Tensor],
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    *,
    out_group: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""Pull the dense gradients of a stack of weights back to codebooks and scales.

    Weight by weight what :func:`codebook_grad` returns, for all of them at once: the same bits on
    a CPU, whatever a weight is stacked with and on any number of threads.

    Args:
        gradients: ``W`` tensors ``[rows * out_group, cols * g / out_group]``, floating, of any
            layout.
        codes: ``[W, rows, cols, M]`` integers in ``0 .. K - 1``.
        codebooks: ``[W, M, K, g]``, floating.
        scales: ``[W, rows, S]`` of the codebooks' dtype.
        out_group: rows of a group; divides ``g``.

    Returns:
        Gradients of the codebooks and of the scales, of their shapes and dtype.

    Raises:
        ValueError: if numbers, shapes or devices do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import stacked_codebook_grad
        >>> codes = torch.tensor([[[[1], [1]]]])
        >>> gradient = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> books = torch.tensor([[[[0.0, 0.0], [1.0, -1.0]]]])
        >>> stacked_codebook_grad([gradient], codes, books, torch.tensor([[[0.5]]]))
        (tensor([[[[0., 0.],
                  [2., 3.]]]]), tensor([[[-2.]]]))
    """
    shape = check_stack(codes, codebooks, scales, out_group)
    gradients = list(gradients)
    check_list("gradients", gradients, len(codes), shape, codes.device)
    return call(_op, gradients, codes, codebooks, scales, out_group)


@torch.library.custom_op("pvopt::stacked_codebook_grad", mutates_args=())
def _op(
    gradients: list[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    check_code_values(codes, codebooks)
    run = implementation("stacked_codebook_grad", codebooks)
    books, of_scales = run(gradients, codes, codebooks, scales, out_group)
    return books.to(codebooks.dtype), of_scales.to(scales.dtype)


@_op.register_fake
def _fake(
    gradients: list[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    return codebooks.new_empty(codebooks.shape), scales.new_empty(scales.shape)
