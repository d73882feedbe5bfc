"""Minimise a quadratic over a finite set of values per coordinate, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CertifiedCodes", "QuadraticModel", "branch_and_bound"]

_BLOCK = 128  # nodes relaxed together: large enough for NumPy, small enough to stay best-first
_ACTIVE_SET_STEPS = 12
_REGULARISATION = 1e-10  # of the largest eigenvalue, added where the matrix is not definite


@dataclass(frozen=True, eq=False)
class QuadraticModel:
    r"""A quadratic around a point, to be minimised over codes into a table of values.

    .. math:: q(x) = \langle g, x - y \rangle + \tfrac12 (x - y)^\top B (x - y)

    Args:
        curvature: ``(d, d)`` float64 B, symmetric positive semidefinite.
        gradient: ``(d,)`` float64 g, in the range of B.
        origin: ``(d,)`` float64 y.
        values: ``(c,)`` float64.
    """

    curvature: NDArray[np.float64]
    gradient: NDArray[np.float64]
    origin: NDArray[np.float64]
    values: NDArray[np.float64]

    def __call__(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return q, ``(...)``, at codes ``(..., d)``."""
        step = self.values[codes] - self.origin
        return (step * (self.gradient + 0.5 * (step @ self.curvature))).sum(-1)


@dataclass(frozen=True, eq=False)
class CertifiedCodes:
    """Codes, the model's value there, and a proven lower bound on its value anywhere."""

    codes: NDArray[np.int64]
    upper_bound: float
    lower_bound: float
    nodes: int

    @property
    def gap(self) -> float:
        """Upper minus lower bound; 0 certifies a global minimum."""
        return self.upper_bound - self.lower_bound


def branch_and_bound(
    model: QuadraticModel, start: NDArray[np.int64], *, max_nodes: int = 100_000
) -> CertifiedCodes:
    r"""Minimise a quadratic model over all codes.

    A node allows each coordinate a range of neighbouring values. Its bound comes from the
    minimiser z over the box between the ends of the ranges: for every diagonal
    :math:`0 \preceq D \preceq B` and every z, convexity gives

    .. math:: q(x) \ge q(z) + \sum_i \min_{v} \Bigl[\nabla q(z)_i (v - z_i)
              + \tfrac12 D_{ii} (v - z_i)^2\Bigr]

    with v over the values in range. Best bound first; the coordinate whose relaxed value is most
    expensive to round is split between the two values around it.

    Args:
        model: the quadratic.
        start: ``(d,)`` int64, codes to improve on; they are returned if nothing is better.
        max_nodes: stop after this many nodes, with a lower bound below the upper.

    Returns:
        The best codes found and both bounds, exact up to rounding. On a rank-deficient matrix
        they may also differ by the regularisation, 1e-10 of the largest eigenvalue times the
        squared range of values.

    Raises:
        ValueError: for a limit below 1.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import QuadraticModel, branch_and_bound
        >>> model = QuadraticModel(np.eye(2), np.array([-0.6, -0.2]), np.zeros(2), np.arange(2.0))
        >>> found = branch_and_bound(model, np.array([0, 0]))
        >>> found.codes.tolist(), round(found.upper_bound, 3), found.gap < 1e-12
        ([1, 0], -0.1, True)

    References:
        PV-Tuning (arXiv 2405.14852), the PV algorithm: the V step. Land and Doig (1960), "An
        automatic method of solving discrete programming problems".
    """
    if max_nodes < 1:
        raise ValueError(f"max_nodes must be at least 1, got {max_nodes}")
    order = np.argsort(model.values, kind="stable")  # ranges of codes must be ranges of values
    model = QuadraticModel(model.curvature, model.gradient, model.origin, model.values[order])
    codes = _coordinate_descent(model, np.argsort(order)[np.asarray(start, dtype=np.int64)])
    best = float(model(codes))
    matrix, slack = _definite(model)
    diagonal = _separable_part(matrix)
    low = np.zeros((1, len(codes)), dtype=np.int64)
    high = np.full_like(low, len(model.values) - 1)
    bound, nodes, closed = np.full(1, -np.inf), 0, np.inf
    while len(bound) and nodes < max_nodes:
        chosen = np.argsort(bound, kind="stable")[:_BLOCK]
        rest = np.ones(len(bound), dtype=bool)
        rest[chosen] = False
        inner_low, inner_high = low[chosen], high[chosen]
        nodes += len(chosen)
        relaxed, slope = _relax(model, matrix, inner_low, inner_high)
        inner, nearest = _bounds(model, matrix, diagonal, relaxed, slope, inner_low, inner_high)
        inner = np.maximum(inner, bound[chosen])
        objective = model(nearest)
        if objective.min() < best:
            codes = _coordinate_descent(model, nearest[int(objective.argmin())])
            best = float(model(codes))
        children = _split(model, matrix, relaxed, inner, inner_low, inner_high)
        low = np.concatenate([low[rest], children[0]])
        high = np.concatenate([high[rest], children[1]])
        bound = np.concatenate([bound[rest], children[2]])
        keep = bound < best - 1e-13 * abs(best)
        closed = min(closed, float(bound[~keep].min(initial=np.inf)))
        low, high, bound = low[keep], high[keep], bound[keep]
    lower = min(best, closed, float(bound.min(initial=np.inf)))
    return CertifiedCodes(order[codes], best, lower - slack, nodes)


def _relax(
    model: QuadraticModel,
    matrix: NDArray[np.float64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimise over boxes by a primal-dual active set; return minimisers and their gradients.

    The bound holds for any point, so the few boxes on which the active set does not settle cost
    nodes, not correctness.
    """
    bottom, top = model.values[low], model.values[high]
    scale = np.diag(matrix)
    side = np.where(low == high, -1, 0)  # -1 at the bottom, 1 at the top, 0 in between
    z = slope = bottom
    for _ in range(_ACTIVE_SET_STEPS):
        clamped = np.where(side > 0, top, bottom)
        free = side == 0
        # Clamped coordinates get a row of the identity, free ones the equation gradient = 0.
        system = np.where(free[:, :, None] & free[:, None, :], matrix, np.eye(len(scale)))
        step = np.where(free, 0.0, clamped - model.origin)
        right = np.where(free, -(model.gradient + step @ matrix), 0.0)
        moved = np.linalg.solve(system, right[..., None])[..., 0]
        z = np.where(free, model.origin + moved, clamped)
        slope = model.gradient + (z - model.origin) @ matrix
        wanted = z - slope / scale
        fresh = np.where(wanted >= top, 1, np.where(wanted <= bottom, -1, 0))
        fresh = np.where(low == high, -1, fresh)
        if (fresh == side).all():
            break
        side = fresh
    z = np.clip(z, bottom, top)
    return z, model.gradient + (z - model.origin) @ matrix


def _bounds(
    model: QuadraticModel,
    matrix: NDArray[np.float64],
    diagonal: NDArray[np.float64],
    z: NDArray[np.float64],
    slope: NDArray[np.float64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the lower bound of every node and the codes nearest to its relaxed point."""
    offset = model.values - z[..., None]
    code = np.arange(len(model.values))
    allowed = (code >= low[..., None]) & (code <= high[..., None])
    cost = slope[..., None] * offset + 0.5 * diagonal[:, None] * np.square(offset)
    separable = np.where(allowed, cost, np.inf).min(-1).sum(-1)
    step = z - model.origin
    at_z = (step * (model.gradient + 0.5 * (step @ matrix))).sum(-1)
    return at_z + separable, np.where(allowed, np.abs(offset), np.inf).argmin(-1)


def _split(
    model: QuadraticModel,
    matrix: NDArray[np.float64],
    z: NDArray[np.float64],
    bound: NDArray[np.float64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return two children per node with a coordinate left to split."""
    below = np.clip(np.searchsorted(model.values, z, side="right") - 1, low, high - 1)
    gap = np.minimum(np.abs(z - model.values[below]), np.abs(model.values[below + 1] - z))
    cost = np.where(low < high, np.diag(matrix) * np.square(gap), -1.0)
    coordinate = cost.argmax(1)
    open_nodes = np.flatnonzero(
        low[np.arange(len(z)), coordinate] < high[np.arange(len(z)), coordinate]
    )
    coordinate = coordinate[open_nodes]
    cut = below[open_nodes, coordinate]
    rows = np.arange(len(open_nodes))
    left_high, right_low = high[open_nodes], low[open_nodes]
    left_high[rows, coordinate] = cut
    right_low[rows, coordinate] = cut + 1
    return (
        np.concatenate([low[open_nodes], right_low]),
        np.concatenate([left_high, high[open_nodes]]),
        np.concatenate([bound[open_nodes]] * 2),
    )


def _separable_part(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a diagonal below the matrix, the largest in trace of three scaled shapes."""
    shapes = [np.ones(len(matrix)), np.diag(matrix), 1 / np.diag(np.linalg.inv(matrix))]
    found = []
    for shape in shapes:
        root = np.sqrt(shape)
        share = np.linalg.eigvalsh(matrix / np.outer(root, root))[0]
        found.append(shape * max(0.0, share * (1 - 1e-9)))  # a hair less: rounding must not lift it
    return max(found, key=np.sum)


def _definite(model: QuadraticModel) -> tuple[NDArray[np.float64], float]:
    """Return a definite matrix and what using it may take off a lower bound."""
    eigenvalues = np.linalg.eigvalsh(model.curvature)
    missing = max(0.0, _REGULARISATION * eigenvalues[-1] - eigenvalues[0])
    if missing == 0:
        return model.curvature, 0.0
    farthest = np.square(model.values - model.origin[:, None]).max(1).sum()
    return model.curvature + missing * np.eye(len(eigenvalues)), 0.5 * missing * float(farthest)


def _coordinate_descent(model: QuadraticModel, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Improve codes one coordinate at a time, so that pruning starts with a good upper bound."""
    codes, curvature = codes.copy(), np.diag(model.curvature)[:, None]
    for _ in range(100 * len(codes)):
        weights = model.values[codes]
        slope = model.gradient + (weights - model.origin) @ model.curvature
        step = model.values - weights[:, None]
        change = slope[:, None] * step + 0.5 * curvature * np.square(step)
        coordinate, value = np.unravel_index(change.argmin(), change.shape)
        if change[coordinate, value] >= -1e-14 * np.abs(change).max():
            break
        codes[coordinate] = value
    return codes
