"""V steps that minimise over all codes jointly: the exact one, and the one in a full metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .branch_and_bound import QuadraticModel, branch_and_bound
from .points import Point
from .problems import Problem
from .v_step import VOutcome, VStep, without_gradient

__all__ = ["ExactV", "FullMetricV", "Solver", "all_codes"]

Solver = Literal["auto", "enumeration", "branch and bound"]
_CHEAP = 5_000  # below this many codes, enumeration beats branch and bound


def all_codes(dimension: int, num_values: int, *, limit: int = 1_000_000) -> NDArray[np.int64]:
    """Return every assignment of codes to coordinates.

    Args:
        dimension: number of weights d.
        num_values: number of values c.
        limit: refuse to build more rows than this.

    Returns:
        ``(c**d, d)`` int64.

    Raises:
        ValueError: if there are more than ``limit``.

    Example:
        >>> from pvopt.convex import all_codes
        >>> all_codes(2, 2).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]

    References:
        PV-Tuning (arXiv 2405.14852), the PV algorithm: the V step is combinatorial.
    """
    count = num_values**dimension
    if count > limit:
        raise ValueError(
            f"enumeration of {num_values}**{dimension} = {count} codes exceeds the limit of "
            f"{limit}; use solver='branch and bound' (quadratics) or a linearized V step"
        )
    return np.indices((num_values,) * dimension).reshape(dimension, -1).T


@dataclass(frozen=True)
class ExactV(VStep):
    r"""Minimise the objective over all codes, with the values kept.

    .. math:: M_V(y) = \arg\min\{\phi(x) : V(x) \subseteq V(y)\}

    Codes move only for a strictly lower objective, so a limit point is a fixed point.

    Args:
        solver: ``"enumeration"`` of all c**d codes, for any objective; ``"branch and bound"``, for
            quadratics up to about 24 weights; ``"auto"`` picks the cheaper one.
        limit: largest number of codes to enumerate.
        max_nodes: largest number of nodes of branch and bound; when it is reached the outcome's
            ``certificate_gap`` is positive and the step is not proven optimal.

    Raises:
        ValueError: for an unknown solver or a limit below 1.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import ExactV, Point, Quadratic
        >>> point = Point(np.array([0, 0]), np.array([0.0, 1.0]))
        >>> ExactV().step(Quadratic(np.eye(2), np.array([0.9, 0.2])), point).point.codes.tolist()
        [1, 0]

    References:
        PV-Tuning (arXiv 2405.14852), the PV algorithm: the V step.
    """

    solver: Solver = "auto"
    limit: int = 1_000_000
    max_nodes: int = 100_000

    def __post_init__(self) -> None:
        _check_solver(self.solver)
        for name in ("limit", "max_nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def step(
        self,
        problem: Problem,
        point: Point,
        *,
        buffer: NDArray[np.float64] | None = None,
        gradient: NDArray[np.float64] | None = None,
        generator: np.random.Generator | None = None,
    ) -> VOutcome:
        """Return the best codes of every run.

        Raises:
            ValueError: if enumeration would exceed the limit.
            TypeError: for branch and bound on an objective that is not quadratic.
        """
        count = point.num_values**problem.dimension
        bounding = self.solver == "branch and bound" or (
            self.solver == "auto" and problem.is_quadratic and count > _CHEAP
        )
        if bounding and not problem.is_quadratic:
            raise TypeError(
                f"solver 'branch and bound' needs a quadratic, got {type(problem).__name__}"
            )
        if bounding:
            weights = point.weights
            slope, curvature = problem.gradient(weights), problem.hessian(weights)
            return _minimise_models(point, curvature, slope, self.max_nodes)
        table = all_codes(problem.dimension, point.num_values, limit=self.limit)
        return _enumerate(point, table, lambda _, weights: problem.value(weights))


@dataclass(frozen=True, eq=False)
class FullMetricV(VStep):
    r"""Minimise the quadratic bound of a full metric over all codes.

    .. math:: x = \arg\min_{V(x) \subseteq V(y)} \langle g, x - y \rangle
              + \tfrac12 (x - y)^\top D (x - y)

    Rounding :math:`y - D^{-1} g` in the norm of D. It cannot raise the objective while D is at
    least the Hessian; with D the Hessian of a quadratic it is the exact V step. For a diagonal D
    use :class:`LinearizedV`, which needs no search.

    Args:
        metric: ``(d, d)`` float64 D, symmetric positive definite.
        max_nodes: as in :class:`ExactV`.

    Raises:
        ValueError: if the metric is not symmetric and positive definite.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import FullMetricV, Point, Quadratic
        >>> problem = Quadratic(np.eye(2), np.array([0.9, 0.2]))
        >>> point = Point(np.array([0, 0]), np.array([0.0, 1.0]))
        >>> FullMetricV(np.eye(2)).step(problem, point).point.codes.tolist()
        [1, 0]

    References:
        Iterative OBS (NeurIPS 2024) and GPTQ (arXiv 2210.17323): rounding in the layer's Hessian.
    """

    metric: NDArray[np.float64]
    max_nodes: int = 100_000

    def __post_init__(self) -> None:
        metric = np.asarray(self.metric, dtype=np.float64)
        if metric.ndim != 2 or metric.shape[0] != metric.shape[1]:
            raise ValueError(f"metric must be a square matrix, got shape {metric.shape}")
        if not np.allclose(metric, metric.T) or np.linalg.eigvalsh(metric)[0] <= 0:
            raise ValueError("metric must be symmetric and positive definite")
        object.__setattr__(self, "metric", metric)

    def step(
        self,
        problem: Problem,
        point: Point,
        *,
        buffer: NDArray[np.float64] | None = None,
        gradient: NDArray[np.float64] | None = None,
        generator: np.random.Generator | None = None,
    ) -> VOutcome:
        """Return the minimiser of the bound for every run."""
        slope = problem.gradient(point.weights) if gradient is None else gradient
        if point.num_values**problem.dimension <= _CHEAP:
            table = all_codes(problem.dimension, point.num_values)
            weights = point.weights.reshape(-1, problem.dimension)
            slopes = slope.reshape(-1, problem.dimension)

            def bound(run: int, candidates: NDArray[np.float64]) -> NDArray[np.float64]:
                move = candidates - weights[run]
                return (move * (slopes[run] + 0.5 * (move @ self.metric))).sum(-1)

            return _enumerate(point, table, bound)
        return _minimise_models(point, self.metric, slope, self.max_nodes)


def _enumerate(
    point: Point,
    table: NDArray[np.int64],
    objective: Callable[[int, NDArray[np.float64]], NDArray[np.float64]],
) -> VOutcome:
    """Take the best row of the table for every run; stay unless it is strictly better."""
    codes = point.codes.reshape(-1, point.codes.shape[-1]).copy()
    values = point.values.reshape(-1, point.num_values)
    for run, (present, levels) in enumerate(zip(codes, values, strict=True)):
        found = objective(run, levels[table])
        best = int(found.argmin())
        if found[best] < objective(run, levels[present][None])[0]:
            codes[run] = table[best]
    return without_gradient(Point(codes.reshape(point.codes.shape), point.values), 0.0)


def _minimise_models(
    point: Point,
    curvature: NDArray[np.float64],
    slope: NDArray[np.float64],
    max_nodes: int,
) -> VOutcome:
    """Run branch and bound for every run."""
    d = point.codes.shape[-1]
    codes, gaps = point.codes.reshape(-1, d).copy(), []
    values, weights = point.values.reshape(-1, point.num_values), point.weights.reshape(-1, d)
    for run, gradient in enumerate(slope.reshape(-1, d)):
        model = QuadraticModel(curvature, gradient, weights[run], values[run])
        found = branch_and_bound(model, codes[run], max_nodes=max_nodes)
        if found.upper_bound < 0:  # the model is 0 at the present codes
            codes[run] = found.codes
        gaps.append(found.gap)
    moved = Point(codes.reshape(point.codes.shape), point.values)
    return without_gradient(moved, np.reshape(gaps, point.codes.shape[:-1]))


def _check_solver(solver: str) -> None:
    allowed = ("auto", "enumeration", "branch and bound")
    if solver not in allowed:
        raise ValueError(f"solver must be one of {allowed}, got {solver!r}")
