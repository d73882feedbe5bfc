"""V steps by linearization: round a gradient step to the values that are there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .points import Point
from .problems import Problem
from .rounding import Nearest, Rounding
from .smoothness import restricted_smoothness
from .subspaces import AllCoordinates, Proposal, SubspaceRule

__all__ = ["KeepCodes", "LinearizedV", "VOutcome", "VStep"]


@dataclass(frozen=True, eq=False)
class VOutcome:
    """What a V step returns.

    Args:
        point: the new point; its values are those of the old one.
        buffer: ``(..., d)``, the latent weights kept for the next step.
        smoothness: ``(...)``, the reciprocal of the step size used (the largest one over inner
            iterations): L or L_S for a step by theory; nan where no gradient was used.
        certificate_gap: ``(...)``, upper minus lower bound of the step's own minimisation; 0 where
            the minimum is proven, nan where the step does not minimise over codes jointly.
    """

    point: Point
    buffer: NDArray[np.float64]
    smoothness: NDArray[np.float64]
    certificate_gap: NDArray[np.float64]


class VStep(ABC):
    """Move the codes of a point; its values stay."""

    @property
    def deterministic(self) -> bool:
        """Whether the step draws nothing at random."""
        return True

    @property
    def keeps_buffer(self) -> bool:
        """Whether latent weights live on between steps."""
        return False

    @abstractmethod
    def step(
        self,
        problem: Problem,
        point: Point,
        *,
        buffer: NDArray[np.float64] | None = None,
        gradient: NDArray[np.float64] | None = None,
        generator: np.random.Generator | None = None,
    ) -> VOutcome:
        """Return the point and the buffer after the step.

        Args:
            problem: the objective.
            point: codes ``(..., d)`` and values ``(..., c)``.
            buffer: ``(..., d)``, what the update is added to: latent weights, or those before a
                simultaneous P step; None takes the point's weights.
            gradient: ``(..., d)``, the gradient at the point's weights if it is known already, or
                one taken elsewhere (before a simultaneous P step).
            generator: source of random draws.

        Raises:
            ValueError: if the step draws at random and has no generator.
        """


@dataclass(frozen=True)
class KeepCodes(VStep):
    """Leave the codes alone: only the continuous parameters are tuned.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import KeepCodes, Point, Quadratic
        >>> point = Point(np.array([0, 1]), np.array([0.0, 1.0]))
        >>> KeepCodes().step(Quadratic(np.eye(2), np.ones(2)), point).point is point
        True
    """

    def step(
        self,
        problem: Problem,
        point: Point,
        *,
        buffer: NDArray[np.float64] | None = None,
        gradient: NDArray[np.float64] | None = None,
        generator: np.random.Generator | None = None,
    ) -> VOutcome:
        """Return the point itself."""
        return without_gradient(point, np.nan)


@dataclass(frozen=True, eq=False)
class LinearizedV(VStep):
    r"""Round a gradient step; by its parts every V step of training is one of these.

    .. math:: t = b - \eta\, g, \qquad x_i = \mathrm{round}_{V}(t_i) \;\; (i \in S), \qquad
              b \leftarrow (1 - \rho)\, t + \rho\, x

    with g the gradient at the present weights y. For :math:`\rho = 1` there is no buffer: b = y,
    and the step minimises the upper bound
    :math:`\phi(y) + \langle g, x - y \rangle + \tfrac{1}{2\eta} \lVert x - y \rVert^2` over the
    codes in S. It cannot raise the objective while :math:`\eta \le 1 / L_S`.

    Args:
        inner: iterations T before the next P step, each with a new gradient and subspace.
        subspace: which coordinates may move.
        rounding: which value they take.
        step_size: :math:`\eta > 0`. None takes :math:`1 / L_S` of the subspace selected, per run;
            with a buffer, which moves as a whole, :math:`1 / L`.
        metric: ``(d,)`` positive diagonal D in place of :math:`1 / \eta`; the step cannot raise
            the objective while D is at least the Hessian.
        latent_decay: :math:`\rho` in 0..1; 1 keeps no buffer, 0 never resets it (straight-through),
            values between pull it towards the rounded weights (penalised straight-through).
        trust_ratio: r > 0, or None. Changes are accepted in the subspace's order, most important
            first, while the change of the weights stays within ``r ||y||``; the first one always.

    Raises:
        ValueError: for a setting out of range, or both a step size and a metric.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import LinearizedV, Point, Quadratic
        >>> problem = Quadratic(np.eye(2), np.array([0.9, 0.2]))
        >>> point = Point(np.array([0, 0]), np.array([0.0, 1.0]))
        >>> LinearizedV().step(problem, point).point.codes.tolist()
        [1, 0]

    References:
        PV-Tuning (arXiv 2405.14852), the linearized V step and its subspace variant; theory of the
        metric: replace L I by any matrix above the Hessian.
    """

    inner: int = 1
    subspace: SubspaceRule = field(default_factory=AllCoordinates)
    rounding: Rounding = field(default_factory=Nearest)
    step_size: float | None = None
    metric: NDArray[np.float64] | None = None
    latent_decay: float = 1.0
    trust_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.inner < 1:
            raise ValueError(f"inner must be at least 1, got {self.inner}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")
        if not 0 <= self.latent_decay <= 1:
            raise ValueError(f"latent_decay must be in 0..1, got {self.latent_decay}")
        if self.trust_ratio is not None and not self.trust_ratio > 0:
            raise ValueError(f"trust_ratio must be positive or None, got {self.trust_ratio}")
        if self.metric is None:
            return
        if self.step_size is not None:
            raise ValueError("step_size and metric exclude each other: both scale the gradient")
        if np.ndim(self.metric) != 1 or not (np.asarray(self.metric) > 0).all():
            raise ValueError("metric must be a vector of positive entries, one per weight")

    @property
    def deterministic(self) -> bool:
        """Whether neither the subspace nor the rounding draws at random."""
        return self.subspace.deterministic and self.rounding.deterministic

    @property
    def keeps_buffer(self) -> bool:
        """Whether the latent decay is below 1."""
        return self.latent_decay < 1

    def step(
        self,
        problem: Problem,
        point: Point,
        *,
        buffer: NDArray[np.float64] | None = None,
        gradient: NDArray[np.float64] | None = None,
        generator: np.random.Generator | None = None,
    ) -> VOutcome:
        """Return the point and the buffer after ``inner`` roundings."""
        curvatures = []
        latent = point.weights if buffer is None else buffer
        for _ in range(self.inner):
            if gradient is None:
                gradient = problem.gradient(point.weights)
            point, latent, curvature = self._once(problem, point, latent, gradient, generator)
            curvatures.append(curvature)
            gradient = None
        largest = np.max(curvatures, axis=0)
        return VOutcome(point, latent, largest, np.full(largest.shape, np.nan))

    def _once(
        self,
        problem: Problem,
        point: Point,
        latent: NDArray[np.float64],
        gradient: NDArray[np.float64],
        generator: np.random.Generator | None,
    ) -> tuple[Point, NDArray[np.float64], NDArray[np.float64]]:
        weights = point.weights
        scale = self._scale(problem)
        target = latent - gradient / scale
        proposal = Proposal(problem, point, gradient, target - weights)
        chosen = self.subspace.select(proposal, generator)
        curvature = np.full(weights.shape[:-1], np.max(scale))
        adaptive = self.step_size is None and self.metric is None and not self.keeps_buffer
        if adaptive and chosen.shape[-1] < problem.dimension:
            curvature = restricted_smoothness(problem.curvature, chosen)
            target = latent - gradient / np.maximum(curvature, np.finfo(float).tiny)[..., None]
        picked = self.rounding.choose(
            np.take_along_axis(target, chosen, -1), point.values, generator
        )
        if self.trust_ratio is not None:
            picked = self._accepted(point, chosen, picked)
        codes = point.codes.copy()
        np.put_along_axis(codes, chosen, picked, -1)
        point = Point(codes, point.values)
        decay = self.latent_decay
        latent = point.weights if decay == 1 else (1 - decay) * target + decay * point.weights
        return point, latent, curvature

    def _accepted(
        self, point: Point, chosen: NDArray[np.int64], picked: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the codes picked for the coordinates chosen, or the present ones outside."""
        assert self.trust_ratio is not None
        present = np.take_along_axis(point.codes, chosen, -1)
        moved = picked != present
        difference = Point(picked, point.values).weights - Point(present, point.values).weights
        bound = self.trust_ratio**2 * np.square(point.weights).sum(-1, keepdims=True)
        fits = np.square(difference).cumsum(-1) <= bound
        return np.where(fits | (moved.cumsum(-1) == 1), picked, present)

    def _scale(self, problem: Problem) -> NDArray[np.float64] | float:
        """Return what the gradient is divided by before the subspace is known."""
        if self.metric is not None:
            return np.asarray(self.metric, dtype=np.float64)
        return problem.smoothness if self.step_size is None else 1 / self.step_size


def without_gradient(point: Point, gap: float | NDArray[np.float64]) -> VOutcome:
    """Return the outcome of a step that used neither a buffer nor a step size.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Point
        >>> from pvopt.convex.v_step import without_gradient
        >>> outcome = without_gradient(Point(np.array([0]), np.array([2.0])), 0.0)
        >>> outcome.buffer.tolist(), float(outcome.certificate_gap)
        ([2.0], 0.0)
    """
    shape = point.codes.shape[:-1]
    gaps = np.broadcast_to(np.asarray(gap, dtype=np.float64), shape)
    return VOutcome(point, point.weights, np.full(shape, np.nan), gaps)
