"""Logistic regression: an objective whose Hessian changes from point to point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from .problems import Problem, finite_array

__all__ = ["Logistic"]


@dataclass(frozen=True, eq=False)
class Logistic(Problem):
    r"""A regularised logistic regression.

    .. math:: \phi(x) = \frac1n \sum_{i=1}^n \log(1 + e^{-y_i X_i^\top x})
              + \frac{\lambda}{2} \lVert x \rVert^2,
              \qquad \nabla^2 \phi \preceq \frac{1}{4n} X^\top X + \lambda I

    Args:
        X: ``(n, d)`` float64.
        y: ``(n,)`` labels, each -1 or 1.
        l2: the weight :math:`\lambda \ge 0` of the penalty.

    Raises:
        ValueError: if the shapes do not fit, a label is not -1 or 1, or ``l2`` is negative.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Logistic
        >>> problem = Logistic(np.array([[2.0], [-2.0]]), np.array([1.0, -1.0]), l2=0.5)
        >>> problem.gradient(np.zeros(1)).tolist(), problem.smoothness
        ([-1.0], 1.5)

    References:
        PV-Tuning (arXiv 2405.14852), the convergence theorem: any objective bounded below.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    l2: float = 0.0

    def __post_init__(self) -> None:
        inputs, labels = finite_array("X", self.X, 2), finite_array("y", self.y, 1)
        object.__setattr__(self, "X", inputs)
        object.__setattr__(self, "y", labels)
        if labels.shape != inputs.shape[:1]:
            raise ValueError(f"y must have shape {inputs.shape[:1]}, got {labels.shape}")
        if not inputs.any():
            raise ValueError("X must not be empty or zero")
        if not np.isin(labels, (-1.0, 1.0)).all():
            raise ValueError(f"y must hold labels -1 and 1, got {np.unique(labels).tolist()}")
        if not (np.isfinite(self.l2) and self.l2 >= 0):
            raise ValueError(f"l2 must be finite and at least 0, got {self.l2}")

    @cached_property
    def curvature(self) -> NDArray[np.float64]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The bound ``X'X / (4 n) + l2 I``: the slope of the sigmoid is at most 1/4."""
        n, d = self.X.shape
        return self.X.T @ self.X / (4 * n) + self.l2 * np.eye(d)

    @cached_property
    def strong_convexity(self) -> float:
        """The penalty ``l2``; far from the data the losses are flat."""
        return float(self.l2)

    def value(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the objective at weights ``(..., d)``."""
        losses = np.logaddexp(0.0, -self._margins(weights)).mean(-1)
        return losses + 0.5 * self.l2 * np.square(weights).sum(-1)

    def gradient(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient at weights ``(..., d)``."""
        slopes = -self.y * expit(-self._margins(weights)) / len(self.y)
        return slopes @ self.X + self.l2 * weights

    def hessian(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the Hessian, ``(..., d, d)``, at weights ``(..., d)``."""
        margins = self._margins(weights)
        slopes = expit(margins) * expit(-margins) / len(self.y)
        return (self.X.T * slopes[..., None, :]) @ self.X + self.l2 * np.eye(self.X.shape[1])

    def _margins(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return (weights @ self.X.T) * self.y
