"""Dense weights from packed uniform grids."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.dispatch import implementation

from ._grids import check_grid
from .uniform_grad import uniform_grad

__all__ = ["uniform_decode"]


def uniform_decode(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int, columns: int
) -> Tensor:
    r"""Return the dense weight of a packed uniform grid.

    .. math:: w_i = s_{g(i)}\,(q_i - z_{g(i)})

    Differentiable in scales and zero points.

    Args:
        packed: ``[rows, ceil(columns * bits / 8)]`` uint8, see :func:`pack_rows`.
        scales: ``[rows, S]``, floating, with ``S`` a divisor of ``columns``: one scale for
            ``columns / S`` neighbouring weights.
        zeros: ``[rows, S]`` zero points of the same dtype; None stands for ``2**(bits - 1)``.
        bits: width of one code, 1 to 8.
        columns: of the weight.

    Returns:
        ``[rows, columns]`` in the scales' dtype.

    Raises:
        ValueError: if shapes, devices or the width do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import pack_rows, uniform_decode
        >>> packed = pack_rows(torch.tensor([[0, 1, 2, 3]]), bits=2)
        >>> uniform_decode(packed, torch.tensor([[0.5]]), None, bits=2, columns=4)
        tensor([[-1.0000, -0.5000,  0.0000,  0.5000]])
    """
    check_grid(packed, scales, zeros, bits, columns)
    return _op(packed, scales, zeros, bits, columns)


@torch.library.custom_op("pvopt::uniform_decode", mutates_args=())
def _op(packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int) -> Tensor:
    return implementation("uniform_decode", scales)(packed, scales, zeros, bits, columns)


@_op.register_fake
def _fake(packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, columns: int) -> Tensor:
    return scales.new_empty(packed.shape[0], columns)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.bits, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    packed, scales, zeros = ctx.saved_tensors
    of_scales, of_zeros = uniform_grad(gradient, packed, scales, zeros, bits=ctx.bits)
    return None, of_scales, None if zeros is None else of_zeros, None, None


_op.register_autograd(_backward, setup_context=_setup)
