"""The fast Walsh-Hadamard transform."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import check_floating, check_tensors
from pvopt_kernels.dispatch import implementation

__all__ = ["hadamard"]


def hadamard(x: Tensor) -> Tensor:
    r"""Return the Walsh-Hadamard transform along the last axis.

    .. math:: y = H x, \qquad H_{ij} = n^{-1/2} (-1)^{\mathrm{popcount}(i \mathbin{\&} j)}

    ``H`` is orthogonal and symmetric, so the transform is its own inverse. Differentiable.

    Args:
        x: ``[..., n]`` floating, ``n`` a power of two.

    Returns:
        ``[..., n]``, a new tensor.

    Raises:
        ValueError: if ``n`` is no power of two.

    Example:
        >>> import torch
        >>> from pvopt_kernels import hadamard
        >>> hadamard(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist()
        [0.5, 0.5, 0.5, 0.5]

    References:
        Fino & Algazi, "Unified Matrix Treatment of the Fast Walsh-Hadamard Transform" (1976).
    """
    check_tensors(x=x)
    check_floating(x=x)
    n = x.shape[-1] if x.ndim else 0
    if n < 1 or n & (n - 1):
        raise ValueError(f"the last axis of x must be a power of two, got shape {list(x.shape)}")
    return _op(x)


@torch.library.custom_op("pvopt::hadamard", mutates_args=())
def _op(x: Tensor) -> Tensor:
    return implementation("hadamard", x)(x)


@_op.register_fake
def _fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    pass


def _backward(ctx, gradient: Tensor) -> Tensor:
    return _op(gradient)  # symmetric


_op.register_autograd(_backward, setup_context=_setup)
