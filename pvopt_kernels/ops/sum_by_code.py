"""Sums of the entries that share a code."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_code_range,
    check_codes,
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import call, implementation

__all__ = ["sum_by_code"]


def sum_by_code(values: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    r"""Add up the rows of ``values`` that have the same code.

    .. math:: S_k = \sum_{g:\ z_g = k} x_g

    Args:
        values: ``[n, g]``, floating.
        codes: ``[n]`` int64 in ``0 .. num_codes - 1``.
        num_codes: number of codes.

    Returns:
        ``[num_codes, g]`` of the values' dtype.

    Example:
        >>> import torch
        >>> from pvopt_kernels import sum_by_code
        >>> sum_by_code(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 2, 0]), 3)
        tensor([[5.],
                [0.],
                [2.]])
    """
    check_tensors(values=values, codes=codes)
    check_floating(values=values)
    check_codes(codes=codes)
    check_shape("values", values, "n", "g")
    check_shape("codes", codes, values.shape[0])
    check_same_device(values=values, codes=codes)
    check_integers(num_codes=num_codes)
    if num_codes < 1:
        raise ValueError(f"num_codes must be positive, got {num_codes}")
    return call(_op, values, codes, num_codes)


@torch.library.custom_op("pvopt::sum_by_code", mutates_args=())
def _op(values: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    check_code_range("codes", codes, num_codes)
    return implementation("sum_by_code", values)(values, codes, num_codes)


@_op.register_fake
def _fake(values: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    return values.new_empty(num_codes, values.shape[1])


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
    (codes,) = ctx.saved_tensors
    return gradient.index_select(0, codes.int()), None, None


_op.register_autograd(_backward, setup_context=_setup)
