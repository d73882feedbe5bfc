"""The least squares weights on a support, and a lower bound of their error."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["polished", "positive_cholesky", "refit_support", "removal_costs_more"]

# Elements of one chunk of rows: 16 MiB of float64 for the matrices that are factored.
_CHUNK_ELEMENTS = 1 << 21
_POLISH_STEPS = 50
# Conjugate gradient steps of the bound. They leave at most 2 of the 1536 rows
# of a projection of SmolLM2 undecided.
_BOUND_STEPS = 32


def refit_support(weight: Tensor, support: Tensor, hessian: Tensor) -> Tensor:
    r"""Return the weights on a support that keep a layer's outputs closest: least squares.

    .. math:: \min_{w_i = 0,\, i \notin S} (w - w^0) H (w - w^0)' \quad\Rightarrow\quad
        H_{SS}\, w_S = (H w^0)_S

    Args:
        weight: ``[rows, in]``, the dense :math:`w^0`.
        support: ``[rows, in]`` bool.
        hessian: ``[in, in]`` positive definite.

    Returns:
        ``[rows, in]`` in the weight's dtype, zero outside of the support; computed in the
        Hessian's.

    Raises:
        ValueError: if the Hessian is singular on a support.

    Example:
        >>> import torch
        >>> from pvopt.starts import refit_support
        >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> refit_support(torch.tensor([[2.0, 4.0]]), torch.tensor([[True, False]]), hessian)
        tensor([[4., 0.]])
    """
    largest = int(support.sum(1).max())
    order = support.int().argsort(dim=1, descending=True, stable=True)[:, :largest]
    target = weight.to(hessian) @ hessian
    result = torch.zeros_like(target)
    chunk = max(1, _CHUNK_ELEMENTS // max(1, largest) ** 2)
    for start in range(0, len(weight) if largest else 0, chunk):
        part = slice(start, start + chunk)
        index = order[part]  # [n, largest]
        used = support[part].gather(1, index)  # rows may have fewer: filled up by the identity
        matrix = hessian[index[:, :, None], index[:, None, :]]
        matrix *= used[:, :, None] & used[:, None, :]
        matrix.diagonal(dim1=1, dim2=2).add_((~used).to(matrix))
        goal = torch.where(used, target[part].gather(1, index), 0.0)
        factor = positive_cholesky(matrix)
        result[part].scatter_(1, index, torch.cholesky_solve(goal[..., None], factor)[..., 0])
    return result.to(weight.dtype)


def polished(weight: Tensor, dense: Tensor, support: Tensor, hessian: Tensor) -> Tensor:
    r"""Return the least squares weights on a support, from weights that are close to it.

    Conjugate gradients on :math:`H_{SS} w_S = (H w^0)_S`, the diagonal as the preconditioner,
    until a step lowers no row's error by more than rounding does; rows that take too many steps
    are solved directly.

    Args:
        weight: ``[rows, in]``, zero outside of the support.
        dense: ``[rows, in]``, :math:`w^0`.
        support: ``[rows, in]`` bool.
        hessian: ``[in, in]`` positive definite.

    Returns:
        ``[rows, in]`` in the weight's dtype; computed in the Hessian's.

    Raises:
        ValueError: if the Hessian is singular on a support.

    Example:
        >>> import torch
        >>> from pvopt.starts.refit import polished
        >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> dense, support = torch.tensor([[2.0, 4.0]]), torch.tensor([[True, False]])
        >>> polished(torch.tensor([[3.9, 0.0]]), dense, support, hessian)
        tensor([[4., 0.]])
    """
    tolerance = 8 * torch.finfo(weight.dtype).eps
    scale = hessian.diagonal().reciprocal()
    result = weight.to(hessian)
    change = dense.to(hessian) - result
    gradient = change @ hessian
    enough = tolerance * (gradient * change).sum(1)  # [rows], twice the error
    residual = gradient * support
    solved = residual * scale
    direction, size = solved, (residual * solved).sum(1)
    for _ in range(_POLISH_STEPS):
        if not bool((size > enough).any()):
            return result.to(weight.dtype)
        image = (direction @ hessian) * support
        curvature = (direction * image).sum(1)
        length = torch.where(curvature > 0, size / curvature, 0.0)[:, None]
        result += length * direction
        residual -= length * image
        solved, before = residual * scale, size
        size = (residual * solved).sum(1)
        direction = solved + torch.where(before > 0, size / before, 0.0)[:, None] * direction
    result = result.to(weight.dtype)
    rest = size > enough
    result[rest] = refit_support(dense[rest], support[rest], hessian)
    return result


def removal_costs_more(weight: Tensor, inverse: Tensor, removed: Tensor, error: Tensor) -> Tensor:
    r"""Tell where removing some weights certainly raises the error by more than a bound.

    .. math:: \tfrac12\, w_Q (H^{-1})_{QQ}^{-1} w_Q' = \max_\lambda\; \lambda w_Q' -
        \tfrac12 \lambda (H^{-1})_{QQ} \lambda'

    Conjugate gradients raise the right side step by step, with products that all rows share; most
    rows are decided after a few.

    Args:
        weight: ``[n, in]``.
        inverse: ``[in, in]`` inverse of the Hessian.
        removed: ``[n, in]`` bool, :math:`Q`.
        error: ``[n]`` the bounds.

    Returns:
        ``[n]`` bool; False also where this was not found out.
    """
    more = error < 0
    left = torch.arange(len(weight), device=weight.device)
    residual = weight * removed
    scale = inverse.diagonal().reciprocal()
    solved = residual * scale  # the preconditioned residual
    direction, size = solved, (residual * solved).sum(1)
    value = torch.zeros_like(error)
    for _ in range(_BOUND_STEPS):
        image = (direction @ inverse) * removed[left]
        curvature = (direction * image).sum(1)
        length = torch.where(curvature > 0, size / curvature, 0.0)
        value = value + length * size / 2
        decided = value > error[left]
        more[left[decided]] = True
        on = ~decided
        if not bool(on.any()):
            break
        residual = residual[on] - length[on, None] * image[on]
        solved, before = residual * scale, size[on]
        left, value, size = left[on], value[on], (residual * solved).sum(1)
        ratio = torch.where(before > 0, size / before, 0.0)
        direction = solved + ratio[:, None] * direction[on]
    return more


def positive_cholesky(matrix: Tensor) -> Tensor:
    """Return the lower factors of damped Hessians.

    Raises:
        ValueError: if one is not positive definite.

    Example:
        >>> import torch
        >>> from pvopt.starts.refit import positive_cholesky
        >>> positive_cholesky(torch.tensor([[4.0]]))
        tensor([[2.]])
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()):
        raise ValueError("hessian must be positive definite: damping must be larger")
    return factor
