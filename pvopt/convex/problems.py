"""Smooth objectives: the contract, and the two with a constant Hessian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .smoothness import smoothness

__all__ = ["LeastSquares", "Problem", "Quadratic"]

_RANK_TOLERANCE = 1e-12  # eigenvalues below this share of the largest one count as zero


class Problem(ABC):
    """A smooth objective on vectors of ``dimension`` entries.

    Every method takes weights of shape ``(..., d)``: the leading axes are independent runs.
    """

    #: Whether the Hessian is the same everywhere, so that the curvature is exact and not a bound.
    is_quadratic: bool = False

    @property
    def dimension(self) -> int:
        """Number of weights d."""
        return len(self.curvature)

    @property
    @abstractmethod
    def curvature(self) -> NDArray[np.float64]:
        """A ``(d, d)`` matrix that is at least the Hessian, everywhere."""

    @abstractmethod
    def value(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the objective, ``(...)``, at weights ``(..., d)``."""

    @abstractmethod
    def gradient(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient, ``(..., d)``, at weights ``(..., d)``."""

    @abstractmethod
    def hessian(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the Hessian, ``(d, d)`` or ``(..., d, d)``, at weights ``(..., d)``."""

    @cached_property
    def smoothness(self) -> float:
        """The constant L, the largest eigenvalue of the curvature."""
        return smoothness(self.curvature)

    @cached_property
    def strong_convexity(self) -> float:
        """A constant mu >= 0 below every eigenvalue of every Hessian."""
        lowest = float(np.linalg.eigvalsh(self.curvature)[0]) if self.is_quadratic else 0.0
        return lowest if lowest > _RANK_TOLERANCE * self.smoothness else 0.0


@dataclass(frozen=True, eq=False)
class Quadratic(Problem):
    r"""A convex quadratic.

    .. math:: \phi(x) = \tfrac12 x^\top A x - b^\top x

    Args:
        A: ``(d, d)`` float64, symmetric positive semidefinite, not zero.
        b: ``(d,)`` float64 in the range of A (else nothing bounds the objective from below).

    Raises:
        ValueError: if A is not square, symmetric and positive semidefinite, or b does not fit.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Quadratic
        >>> problem = Quadratic(np.diag([1.0, 4.0]), np.array([1.0, 4.0]))
        >>> float(problem.value(np.ones(2))), problem.smoothness, problem.strong_convexity
        (-2.5, 4.0, 1.0)

    References:
        PV-Tuning (arXiv 2405.14852), appendix: small-scale experiments.
    """

    A: NDArray[np.float64]
    b: NDArray[np.float64]
    is_quadratic = True

    def __post_init__(self) -> None:
        matrix, vector = finite_array("A", self.A, 2), finite_array("b", self.b, 1)
        object.__setattr__(self, "A", matrix)
        object.__setattr__(self, "b", vector)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"A must be square, got shape {matrix.shape}")
        if vector.shape != matrix.shape[:1]:
            raise ValueError(f"b must have shape {matrix.shape[:1]}, got {vector.shape}")
        scale = float(np.abs(matrix).max(initial=0.0))
        if scale == 0:
            raise ValueError("A must not be empty or zero")
        if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-12 * scale):
            raise ValueError("A must be symmetric")
        eigenvalues, vectors = np.linalg.eigh(matrix)
        if eigenvalues[0] < -_RANK_TOLERANCE * len(vector) * eigenvalues[-1]:
            raise ValueError(
                f"A must be positive semidefinite, got eigenvalue {eigenvalues[0]:.3g}"
            )
        null = vectors[:, eigenvalues <= _RANK_TOLERANCE * len(vector) * eigenvalues[-1]]
        outside = float(np.linalg.norm(null.T @ vector))
        if outside > 1e-6 * float(np.linalg.norm(vector)):
            raise ValueError(
                f"b must be in the range of A, got a part of norm {outside:.3g} outside"
            )

    @property
    def curvature(self) -> NDArray[np.float64]:
        """The matrix A."""
        return self.A

    def value(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the objective at weights ``(..., d)``."""
        return (weights * (0.5 * (weights @ self.A) - self.b)).sum(-1)

    def gradient(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return :math:`A x - b` at weights ``(..., d)``."""
        return weights @ self.A - self.b

    def hessian(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return A."""
        return self.A


@dataclass(frozen=True, eq=False)
class LeastSquares(Problem):
    r"""A linear regression: the error of one row of a layer on its calibration inputs.

    .. math:: \phi(x) = \tfrac12 \lVert X x - y \rVert^2

    Args:
        X: ``(n, d)`` float64, not zero; its rank may be below d.
        y: ``(n,)`` float64.

    Raises:
        ValueError: if the shapes do not fit or an entry is not finite.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import LeastSquares
        >>> problem = LeastSquares(np.eye(2), np.array([1.0, 2.0]))
        >>> float(problem.value(np.zeros(2))), problem.gradient(np.zeros(2)).tolist()
        (2.5, [-1.0, -2.0])

    References:
        AQLM (arXiv 2401.06118), section 3: the layer objective ``||X (W - W_q)'||^2``.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    is_quadratic = True

    def __post_init__(self) -> None:
        inputs, targets = finite_array("X", self.X, 2), finite_array("y", self.y, 1)
        object.__setattr__(self, "X", inputs)
        object.__setattr__(self, "y", targets)
        if targets.shape != inputs.shape[:1]:
            raise ValueError(f"y must have shape {inputs.shape[:1]}, got {targets.shape}")
        if not inputs.any():
            raise ValueError("X must not be empty or zero")

    @cached_property
    def curvature(self) -> NDArray[np.float64]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The matrix ``X'X``."""
        return self.X.T @ self.X

    def value(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the objective at weights ``(..., d)``."""
        return 0.5 * np.square(weights @ self.X.T - self.y).sum(-1)

    def gradient(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``X'(X x - y)`` at weights ``(..., d)``."""
        return (weights @ self.X.T - self.y) @ self.X

    def hessian(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``X'X``."""
        return self.curvature


def finite_array(name: str, array: ArrayLike, axes: int) -> NDArray[np.float64]:
    """Return an argument as a finite float64 array with the wanted number of axes.

    Raises:
        ValueError: if it has another number of axes or an entry that is not finite.

    Example:
        >>> from pvopt.convex.problems import finite_array
        >>> finite_array("b", [1, 2], 1).tolist()
        [1.0, 2.0]
    """
    result = np.array(array, dtype=np.float64)
    if result.ndim != axes:
        raise ValueError(f"{name} must have {axes} axes, got shape {result.shape}")
    bad = int(np.count_nonzero(~np.isfinite(result)))
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} entries that are not")
    return result
