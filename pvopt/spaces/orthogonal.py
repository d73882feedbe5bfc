"""Symmetric orthogonal transforms of any size, made of Hadamard matrices where they are known."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvopt_kernels import hadamard

from .paley import has_paley, paley

__all__ = ["kronecker_factors", "transform"]

# A dense factor of this order takes 128 MiB in float64.
_LARGEST_DENSE = 4096


def _dense(order: int) -> bool:
    return order & (order - 1) != 0


def kronecker_factors(size: int) -> tuple[int, ...]:
    """Return orders of small symmetric orthogonal matrices whose Kronecker product has a size.

    Each order is a power of two (Sylvester), one that Paley's constructions give, or, only where
    no product of these has the size, odd (Hartley); among the choices the odd order is smallest,
    then the transform cheapest.

    Args:
        size: at least 1.

    Raises:
        ValueError: if no choice has dense factors of order at most 4096.

    Example:
        >>> from pvopt.spaces.orthogonal import kronecker_factors
        >>> kronecker_factors(11008), kronecker_factors(576), kronecker_factors(13696)
        ((344, 32), (24, 24), (107, 128))
    """
    best = _search(size)
    if best is None or max((f for f in best if _dense(f)), default=0) > _LARGEST_DENSE:
        raise ValueError(
            f"no fast orthogonal transform of size {size}: its odd part has a factor above "
            f"{_LARGEST_DENSE}"
        )
    return best


# What torch.compiler.assume_constant_result does, after seconds of importing torch's compiler: the
# search below is cached.
kronecker_factors._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@functools.cache
def _search(size: int) -> tuple[int, ...] | None:
    """Return the best factors of a size: least odd part left, then least work."""
    odd = size
    while odd % 2 == 0:
        odd //= 2
    if odd == 1:
        return (size,)
    rest = size // odd  # a power of two
    options = [(odd, rest) if rest > 1 else (odd,)]  # Hartley's matrix for the odd part
    for divisor in range(3, odd + 1, 2):
        if odd % divisor:
            continue
        order = 4 * divisor
        while size % order == 0 and order <= _LARGEST_DENSE:
            if has_paley(order):
                below = _search(size // order)
                options += [] if below is None else [(order, *(f for f in below if f > 1))]
            order *= 2
    return min(options, key=_work)


def _work(factors: tuple[int, ...]) -> tuple[int, int]:
    """Return the order of the Hartley factor, then the work per entry: products and passes."""
    left = max((f for f in factors if f % 2 == 1), default=1)
    return left, sum(f if _dense(f) else 32 for f in factors) + 32 * len(factors)


@functools.cache
def _matrix(order: int) -> NDArray[Any]:
    """Return the normalised symmetric matrix of an order: Paley's, or Hartley's for odd orders."""
    if order % 2 == 0:
        return paley(order) / np.sqrt(order)
    angles = 2 * np.pi * (np.outer(np.arange(order), np.arange(order)) % order) / order
    return (np.cos(angles) + np.sin(angles)) / np.sqrt(order)


def transform(x: Tensor) -> Tensor:
    r"""Apply a symmetric orthogonal matrix with small entries along the last axis.

    .. math:: y = H x, \qquad H = H' = H^{-1}, \qquad
        |H_{ij}| \begin{cases} = n^{-1/2} & \text{a Hadamard matrix of order } n \text{ is built}\\
        \le (2/n)^{1/2} & \text{otherwise}\end{cases}

    ``H`` is the Kronecker product of ``kronecker_factors``: Sylvester's matrices, Paley's
    (both kinds, over fields of prime power order, arranged symmetrically), and Hartley's,
    :math:`\cos + \sin` of :math:`2\pi ij/n`, for what is left of the odd part: Hadamard matrices
    have orders 1, 2 and multiples of 4 only, and some of those multiples Paley does not reach.

    Args:
        x: ``[..., n]`` floating.

    Returns:
        ``[..., n]``, a new tensor; applying the transform twice gives ``x`` again.

    Raises:
        ValueError: if ``n`` has no fast transform.

    Example:
        >>> import torch
        >>> from pvopt.spaces import transform
        >>> transform(torch.eye(12)[0]).mul(12**0.5).round(decimals=4).abs().unique()
        tensor([1.])

    References:
        QuIP# (arXiv 2402.04396), section 3; Paley, "On Orthogonal Matrices" (1933); Bracewell,
        "Discrete Hartley Transform" (1983).
    """
    size = x.shape[-1]
    result, right = x, size
    for order in kronecker_factors(size):
        right //= order
        if not _dense(order):  # the last one
            return hadamard(result.reshape(-1, order)).view(x.shape)
        matrix = torch.from_numpy(_matrix(order)).to(x)
        if right == 1:
            result = result.reshape(-1, order) @ matrix
        else:
            result = matrix @ result.reshape(-1, order, right)
    return result.reshape(x.shape)
