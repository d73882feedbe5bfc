"""Damping that grows where a Hessian is singular to rounding: one rule for all starts."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from pvopt.metrics.row import Row

__all__ = ["damped_cholesky"]

logger = logging.getLogger(__name__)

# Where no damping was asked for: well above the rounding of float64.
_LEAST = 1e-6
_GROWTH = 10.0
_MOST = 1.0


def damped_cholesky(
    metric: Row, fraction: float, order: Tensor | None = None
) -> tuple[Row, Tensor]:
    r"""Damp a Hessian and factor it; damp it ten times as much as long as that fails.

    .. math:: H + \lambda I = L L', \qquad \lambda = \text{fraction} \cdot \frac1n \mathrm{tr}\, H

    Inputs that depend on others, or fewer tokens than inputs, make a Hessian singular to rounding.
    Each growth is logged as a warning; beyond the mean diagonal itself there is none.

    Args:
        metric: of the layer's inputs, in float64.
        fraction: of the Hessian's mean diagonal, to begin with.
        order: ``[in]`` in which the columns are factored; None for their own.

    Returns:
        The damped metric, and the lower triangular factor ``L`` ``[in, in]`` of its Hessian, rows
        and columns in that order.

    Raises:
        ValueError: if the Hessian is far from positive semidefinite.

    Example:
        >>> import torch
        >>> from pvopt import Row
        >>> from pvopt.starts.damping import damped_cholesky
        >>> damped, factor = damped_cholesky(Row(torch.tensor([[3.0, 0.0], [0.0, 3.0]])), 1 / 3)
        >>> factor
        tensor([[2., 0.],
                [0., 2.]])
    """
    while True:
        damped = metric.damped(fraction)
        hessian = damped.hessian
        if order is not None:
            hessian = hessian.index_select(0, order).index_select(1, order)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        # A pivot may be positive by rounding alone.
        noise = len(hessian) * torch.finfo(hessian.dtype).eps * hessian.diagonal()
        if not failed and bool((factor.diagonal().square() > noise).all()):
            return damped, factor
        if fraction >= _MOST:
            raise ValueError(
                "hessian must be positive semidefinite, as X'X is: damped by its own mean "
                "diagonal it is still not positive definite"
            )
        larger = min(max(_GROWTH * fraction, _LEAST), _MOST)
        logger.warning(
            "the Hessian is singular to rounding: damping %g does not make it positive definite, "
            "%g is tried",
            fraction,
            larger,
        )
        fraction = larger
