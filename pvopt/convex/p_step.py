"""P steps: the partition is kept, the values move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .points import Point
from .problems import Problem

__all__ = ["ExactP", "GradientP", "KeepValues", "PStep"]

_RANK_TOLERANCE = 1e-12  # eigenvalues of the reduced Hessian below this share count as zero
_ROUNDING = 8 * np.finfo(np.float64).eps


class PStep(ABC):
    """Move the values of a point; its codes, and so its partition, stay."""

    @abstractmethod
    def step(
        self, problem: Problem, point: Point, *, gradient: NDArray[np.float64] | None = None
    ) -> Point:
        """Return the point after the step.

        Args:
            problem: the objective.
            point: codes ``(..., d)`` and values ``(..., c)``.
            gradient: ``(..., d)``, the gradient at the point's weights if it is known already.
        """


@dataclass(frozen=True)
class KeepValues(PStep):
    """Leave the values alone: a fixed grid, on which only the codes move.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import KeepValues, Point, Quadratic
        >>> point = Point(np.array([0, 1]), np.array([0.0, 1.0]))
        >>> KeepValues().step(Quadratic(np.eye(2), np.ones(2)), point) is point
        True
    """

    def step(
        self, problem: Problem, point: Point, *, gradient: NDArray[np.float64] | None = None
    ) -> Point:
        """Return the point itself."""
        return point


@dataclass(frozen=True)
class ExactP(PStep):
    r"""Move the values to the minimum over everything that keeps the partition.

    .. math:: M_P(x) = \arg\min\{\phi(y) : P(y) \supseteq P(x)\} = E v, \qquad
              v \leftarrow v - t\,(E^\top \nabla^2\phi\, E)^{+} E^\top \nabla\phi

    Newton's method on the c-dimensional reduced problem. On a quadratic the first full step is the
    closed form :math:`(E^\top A E) v = E^\top b`. Where the minimiser is not unique (a
    rank-deficient Hessian, a value without weights) it is the one nearest to the present values.

    Args:
        max_iterations: limit of Newton steps for objectives that are not quadratic.
        tolerance: the last step is the one whose squared Newton decrement is below this share of
            ``1 + |phi|``; convergence is quadratic, so that step lands far below it.

    Raises:
        ValueError: for a limit below 1 or a tolerance that is not positive.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import ExactP, Point, Quadratic
        >>> point = Point(np.array([0, 1, 0]), np.array([9.0, 9.0]))
        >>> ExactP().step(Quadratic(np.eye(3), np.array([1.0, 2.0, 3.0])), point).values.tolist()
        [2.0, 2.0]

    References:
        PV-Tuning (arXiv 2405.14852), the PV algorithm: the P step.
    """

    max_iterations: int = 100
    tolerance: float = 1e-11

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {self.max_iterations}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}")

    def step(
        self, problem: Problem, point: Point, *, gradient: NDArray[np.float64] | None = None
    ) -> Point:
        """Return the point with the minimising values."""
        one_hot = point.one_hot()
        gather = np.swapaxes(one_hot, -1, -2)  # sums of members: the chain rule through E
        objective = problem.value(point.weights)
        for _ in range(1 if problem.is_quadratic else self.max_iterations):
            weights = point.weights
            slope = gather @ _column(problem.gradient(weights) if gradient is None else gradient)
            curvature = gather @ problem.hessian(weights) @ one_hot
            newton = -_solve(curvature, slope, well_posed=problem.strong_convexity > 0)[..., 0]
            decrement = np.maximum(-(slope[..., 0] * newton).sum(-1), 0.0)
            point, objective = _backtrack(problem, point, objective, newton, decrement)
            gradient = None
            if np.all(decrement <= self.tolerance * (1 + np.abs(objective))):
                break
        return point


@dataclass(frozen=True)
class GradientP(PStep):
    r"""Move the values by gradient steps: the inexact P step of training.

    .. math:: v \leftarrow v - \eta\, E^\top \nabla\phi(E v)

    Args:
        step_size: :math:`\eta > 0`; None takes one over the smoothness constant of the reduced
            problem, :math:`\lambda_{\max}(E^\top B E)`, per run and partition, which never
            raises the objective.
        steps: how many steps, at least 1.

    Raises:
        ValueError: for a step size that is not positive or fewer than one step.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import GradientP, Point, Quadratic
        >>> point = Point(np.array([0, 0]), np.array([0.0]))
        >>> GradientP(0.1).step(Quadratic(np.eye(2), np.ones(2)), point).values.tolist()
        [0.2]

    References:
        PV-Tuning (arXiv 2405.14852), implementation details: gradient steps on the continuous
        parameters.
    """

    step_size: float | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def step(
        self, problem: Problem, point: Point, *, gradient: NDArray[np.float64] | None = None
    ) -> Point:
        """Return the point after ``steps`` gradient steps on the values."""
        one_hot = point.one_hot()
        gather = np.swapaxes(one_hot, -1, -2)
        size = self.step_size
        if size is None:
            reduced = gather @ problem.curvature @ one_hot
            size = 1 / np.linalg.eigvalsh(reduced)[..., -1:]
        for _ in range(self.steps):
            if gradient is None:
                gradient = problem.gradient(point.weights)
            slope = (gather @ _column(gradient))[..., 0]
            point = Point(point.codes, point.values - size * slope)
            gradient = None
        return point


def _backtrack(
    problem: Problem,
    point: Point,
    objective: NDArray[np.float64],
    newton: NDArray[np.float64],
    decrement: NDArray[np.float64],
) -> tuple[Point, NDArray[np.float64]]:
    """Take the Newton step, halved per run until it lowers the objective enough."""
    length, worse = np.ones(objective.shape), np.zeros(objective.shape, dtype=bool)
    for _ in range(60):
        trial = Point(point.codes, point.values + length[..., None] * newton)
        found = problem.value(trial.weights)
        # At the minimum the last digit of the objective is noise: refusing a step for it would
        # throw away half of the digits of the values.
        allowed = objective - 1e-4 * length * decrement + _ROUNDING * np.abs(objective)
        worse = ~(found <= allowed)
        if not worse.any():
            return trial, found
        length = np.where(worse, length / 2, length)
    length = np.where(worse, 0.0, length)
    trial = Point(point.codes, point.values + length[..., None] * newton)
    return trial, problem.value(trial.weights)


def _solve(
    matrix: NDArray[np.float64], right: NDArray[np.float64], *, well_posed: bool
) -> NDArray[np.float64]:
    """Return the least-norm solution of symmetric systems; rows of unused values give zero."""
    if not well_posed:
        return np.linalg.pinv(matrix, rcond=_RANK_TOLERANCE, hermitian=True) @ right
    unused = np.diagonal(matrix, axis1=-2, axis2=-1) == 0
    return np.linalg.solve(matrix + unused[..., None] * np.eye(matrix.shape[-1]), right)


def _column(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector[..., None]
