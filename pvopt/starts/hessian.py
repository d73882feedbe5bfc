"""The Hessian of a layer's squared output error: damping, and the error itself."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt.parametrizations.layout import matrix_shape

__all__ = ["damped", "dead_inputs", "layer_error", "relative_layer_error"]


def dead_inputs(hessian: Tensor) -> Tensor:
    """Tell which inputs were zero for all tokens.

    Args:
        hessian: ``[in, in]``, ``X'X``.

    Returns:
        ``[in]``, bool.

    Example:
        >>> dead_inputs(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist()
        [False, True]
    """
    return hessian.diagonal() <= 0


def damped(hessian: Tensor, fraction: float) -> Tensor:
    r"""Add a fraction of the mean diagonal to the diagonal, so that the Hessian can be inverted.

    .. math:: H + \lambda I, \qquad \lambda = \text{fraction} \cdot \frac1n \mathrm{tr}\, H

    Args:
        hessian: ``[in, in]``, ``X'X``, float32 or float64.
        fraction: at least 0.

    Returns:
        A damped copy; the identity where the Hessian is zero, which has nothing to be a
        fraction of.

    Raises:
        ValueError: if the fraction is negative.

    Example:
        >>> damped(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.5)
        tensor([[3., 1.],
                [1., 3.]])

    References:
        GPTQ (arXiv 2210.17323), section 3.3, step 3.
    """
    if not fraction >= 0:
        raise ValueError(f"fraction must be at least 0, got {fraction}")
    hessian = hessian.clone()
    mean = hessian.diagonal().mean()
    hessian.diagonal().add_(fraction * mean if mean > 0 else 1.0)
    return hessian


def layer_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> Tensor:
    r"""Return the squared error of a layer's outputs.

    .. math:: \|X (W - W_q)'\|_F^2 = \mathrm{tr}\, (W - W_q) H (W - W_q)', \qquad H = X'X

    Args:
        weight: ``[*shape]``, seen as a matrix ``[out, in]``.
        quantized: ``[*shape]``.
        hessian: ``[in, in]``.

    Returns:
        A scalar in the Hessian's dtype.

    Example:
        >>> hessian = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> layer_error(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 3.0]]), hessian)
        tensor(6.)
    """
    difference = (weight.to(hessian) - quantized.to(hessian)).reshape(matrix_shape(weight.shape))
    return ((difference @ hessian) * difference).sum()


def relative_layer_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    r"""Return the error of a layer's outputs relative to the outputs.

    .. math:: \frac{\|X (W - W_q)'\|_F}{\|X W'\|_F}

    Args:
        weight: ``[*shape]``.
        quantized: ``[*shape]``.
        hessian: ``[in, in]``, ``X'X`` or a positive multiple.

    Returns:
        The ratio; 0 for no error, infinite for an error where the outputs are 0.

    Example:
        >>> relative_layer_error(torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.eye(1))
        0.5
    """
    error = layer_error(weight, quantized, hessian).clamp(min=0)
    size = layer_error(weight, torch.zeros_like(weight), hessian)
    return float((error / size).sqrt()) if error > 0 else 0.0
