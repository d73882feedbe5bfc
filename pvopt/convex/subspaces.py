"""Subspace rules: which coordinates a linearized V step may move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .points import Point
from .problems import Problem

__all__ = [
    "AllCoordinates",
    "Gain",
    "Greedy",
    "Proportional",
    "Proposal",
    "SubspaceRule",
    "Uniform",
]


@dataclass(frozen=True)
class Proposal:
    """What a rule may look at: the point, the gradient there and the update before rounding.

    ``gradient`` and ``update`` (from the weights to the unrounded target) are ``(..., d)``.
    """

    problem: Problem
    point: Point
    gradient: NDArray[np.float64]
    update: NDArray[np.float64]


@dataclass(frozen=True)
class SubspaceRule(ABC):
    """Select the ``size`` coordinates of highest score.

    Args:
        size: number of coordinates m, at least 1; more than d means all of them.

    Raises:
        ValueError: for a size below 1.
    """

    size: int = 1
    deterministic = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    @abstractmethod
    def scores(
        self, proposal: Proposal, generator: np.random.Generator | None = None
    ) -> NDArray[np.float64]:
        """Return a score ``(..., d)`` per coordinate.

        Args:
            proposal: the step that would be taken without a subspace.
            generator: source of random draws.
        """

    def select(
        self, proposal: Proposal, generator: np.random.Generator | None = None
    ) -> NDArray[np.int64]:
        """Return the selected coordinates ``(..., m)``, most important first."""
        scores = self.scores(proposal, generator)
        return np.argsort(-scores, axis=-1, kind="stable")[..., : self.size]


@dataclass(frozen=True)
class AllCoordinates(SubspaceRule):
    """Every coordinate: the linearized V step without a subspace.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import AllCoordinates, Point, Proposal, Quadratic
        >>> point, ones = Point(np.array([0, 0]), np.zeros(1)), np.ones(2)
        >>> proposal = Proposal(Quadratic(np.eye(2), ones), point, ones, -ones)
        >>> AllCoordinates().select(proposal).tolist()
        [0, 1]
    """

    size: int = np.iinfo(np.int64).max

    def scores(
        self, proposal: Proposal, generator: np.random.Generator | None = None
    ) -> NDArray[np.float64]:
        """Return zeros: the coordinates keep their order."""
        return np.zeros_like(proposal.update)


@dataclass(frozen=True)
class Greedy(SubspaceRule):
    r"""The coordinates of largest update: without a buffer, of largest gradient.

    .. math:: S = \mathrm{top}_m |t_i - y_i|

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Greedy, Point, Proposal, Quadratic
        >>> point, slope = Point(np.array([0, 0]), np.zeros(1)), np.array([1.0, -3.0])
        >>> proposal = Proposal(Quadratic(np.eye(2), -slope), point, slope, -slope)
        >>> Greedy(1).select(proposal).tolist()
        [1]

    References:
        PV-Tuning (arXiv 2405.14852), the linearized subspace V step: the paper's choice.
    """

    def scores(
        self, proposal: Proposal, generator: np.random.Generator | None = None
    ) -> NDArray[np.float64]:
        """Return the magnitude of the update."""
        return np.abs(proposal.update)


@dataclass(frozen=True)
class Uniform(SubspaceRule):
    """Coordinates drawn uniformly without replacement.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Point, Proposal, Quadratic, Uniform
        >>> point, ones = Point(np.array([0, 0]), np.zeros(1)), np.ones(2)
        >>> proposal = Proposal(Quadratic(np.eye(2), ones), point, ones, -ones)
        >>> Uniform(1).select(proposal, np.random.default_rng(0)).shape
        (1,)

    References:
        PV-Tuning (arXiv 2405.14852), the linearized subspace V step.
    """

    deterministic = False

    def scores(
        self, proposal: Proposal, generator: np.random.Generator | None = None
    ) -> NDArray[np.float64]:
        """Return random numbers."""
        return _given(generator).random(proposal.update.shape)


@dataclass(frozen=True)
class Proportional(SubspaceRule):
    r"""Coordinates drawn without replacement, the larger update with the larger probability.

    .. math:: P(i) \propto |t_i - y_i|^{1/\tau}

    Args:
        size: number of coordinates m.
        temperature: :math:`\tau > 0`; small is close to :class:`Greedy`, large to
            :class:`Uniform`.

    Raises:
        ValueError: for a temperature that is not positive.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Point, Proportional, Proposal, Quadratic
        >>> point, slope = Point(np.array([0, 0]), np.zeros(1)), np.array([0.0, 1.0])
        >>> proposal = Proposal(Quadratic(np.eye(2), slope), point, slope, -slope)
        >>> Proportional(1).select(proposal, np.random.default_rng(0)).tolist()
        [1]

    References:
        PV-Tuning (arXiv 2405.14852), the linearized subspace V step.
    """

    temperature: float = 1.0
    deterministic = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def scores(
        self, proposal: Proposal, generator: np.random.Generator | None = None
    ) -> NDArray[np.float64]:
        """Return log magnitudes with Gumbel noise: their top-m is the draw wanted."""
        tiny = np.finfo(np.float64).tiny
        logs = np.log(np.maximum(np.abs(proposal.update), tiny)) / self.temperature
        return logs + _given(generator).gumbel(size=proposal.update.shape)


@dataclass(frozen=True)
class Gain(SubspaceRule):
    r"""The coordinates whose best single change of value is predicted to lower the loss most.

    .. math:: \mathrm{gain}_i = \max_j \; -\bigl(g_i s_{ij} + \tfrac12 B_{ii} s_{ij}^2\bigr),
              \qquad s_{ij} = v_j - y_i

    On a quadratic the prediction is exact. With ``size=1`` the step that follows takes exactly the
    change predicted, because :math:`L_S = B_{ii}`. A coordinate with a large gradient that cannot
    cross to another value scores 0, which is what keeps the greedy rule from moving.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Gain, Greedy, Point, Proposal, Quadratic
        >>> point = Point(np.array([0, 0]), np.array([0.0, 1.0]))
        >>> problem = Quadratic(np.diag([100.0, 1.0]), np.array([40.0, 0.9]))
        >>> slope = problem.gradient(point.weights)
        >>> proposal = Proposal(problem, point, slope, -slope)
        >>> Greedy(1).select(proposal).tolist()
        [0]
        >>> Gain(1).select(proposal).tolist()
        [1]

    References:
        Iterative OBS (NeurIPS 2024): saliency as the predicted change of the loss.
    """

    def scores(
        self, proposal: Proposal, generator: np.random.Generator | None = None
    ) -> NDArray[np.float64]:
        """Return the predicted decreases; staying gives 0, so none is negative."""
        point = proposal.point
        step = point.values[..., None, :] - point.weights[..., :, None]
        curvature = np.diag(proposal.problem.curvature)[:, None]
        return -(proposal.gradient[..., :, None] * step + 0.5 * curvature * np.square(step)).min(-1)


def _given(generator: np.random.Generator | None) -> np.random.Generator:
    if generator is None:
        raise ValueError("generator must be given: this subspace rule draws at random")
    return generator
