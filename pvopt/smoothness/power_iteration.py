"""The largest curvature of a subspace by power iteration on projected Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .vectors import Vector, norm, random_like, scale_

# Share of a fresh random direction in a warm start, which might have no part of the wanted one.
_FRESH = 0.1


def largest_curvature(
    product: Callable[[Vector], Vector],
    project_: Callable[[Vector], Vector],
    start: Vector,
    *,
    warm: bool,
    iterations: int,
    tolerance: float,
    generator: torch.Generator,
) -> tuple[float, Vector]:
    r"""Estimate the largest absolute eigenvalue of a projected symmetric matrix.

    .. math:: \lambda_k = \|P H v_k\|, \qquad v_{k+1} = P H v_k / \lambda_k

    In exact arithmetic the estimates never fall and never exceed :math:`\|P H P\|_2`; two
    eigenvalues of equal size and opposite sign do no harm.

    Args:
        product: multiplies a vector with the matrix H.
        project_: applies the projection P in place.
        start: first direction; not changed.
        warm: whether ``start`` comes from a related problem, so that a random direction is mixed
            in; a cold start is taken as it is.
        iterations: most products.
        tolerance: stop when the estimate grows by less than this, relatively; 0: do not stop.
        generator: of the random direction.

    Returns:
        The estimate and the last direction, of norm 1 (0 if the matrix is zero).
    """
    vector = project_([t.clone() for t in start])
    length = norm(vector)
    if warm or length == 0:
        fresh = project_(random_like(start, generator))
        scale_(fresh, (_FRESH if length else 1.0) / norm(fresh))
        if length:
            scale_(vector, 1 / length)
        vector = [a + b for a, b in zip(vector, fresh, strict=True)]
        length = norm(vector)
    estimate = 0.0
    scale_(vector, 1 / length)
    for number in range(iterations):
        vector = project_(product(vector))
        length = norm(vector)
        if length == 0:
            break
        scale_(vector, 1 / length)
        settled = number > 0 and length - estimate < tolerance * length
        estimate = max(estimate, length)
        if settled and tolerance > 0:
            break
    return estimate, vector
