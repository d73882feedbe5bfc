"""Methods: a P step and a V step, alternated until nothing moves."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .p_step import ExactP, PStep
from .points import Point
from .problems import Problem
from .trajectory import StopReason, Trajectory
from .v_step import LinearizedV, VOutcome, VStep

__all__ = ["Method"]

_STILL = 1e-12  # a relative change below this is rounding, not progress


@dataclass(frozen=True, kw_only=True)
class Method:
    r"""Alternate a P step and a V step; see :mod:`pvopt.convex.recipes` for those with a name.

    .. math:: y^k = M_P(x^k), \qquad x^{k+1} = M_V(y^k)

    Args:
        p_step: moves the values.
        v_step: moves the codes.
        simultaneous: take one gradient per iteration, at :math:`x^k`, for both steps, instead of
            a new one after the P step. The V step then rounds :math:`x^k - \eta g` to the values
            that the P step has moved. One backward pass as in training loops, but no guarantee.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import ExactP, ExactV, Method, Quadratic, random_start
        >>> problem = Quadratic(np.eye(4), np.array([0.0, 0.1, 1.0, 1.2]))
        >>> start = random_start(4, 2, np.random.default_rng(0))
        >>> run = Method(p_step=ExactP(), v_step=ExactV()).run(problem, start)
        >>> run.stop_reason, bool(run.is_monotone())
        ('fixed point', True)

    References:
        PV-Tuning (arXiv 2405.14852), the PV algorithm.
    """

    p_step: PStep = field(default_factory=ExactP)
    v_step: VStep = field(default_factory=LinearizedV)
    simultaneous: bool = False

    def run(
        self,
        problem: Problem,
        start: Point,
        *,
        iterations: int = 100,
        generator: np.random.Generator | None = None,
    ) -> Trajectory:
        """Run until a fixed point or the limit of iterations.

        Args:
            problem: the objective.
            start: codes ``(..., d)`` and values ``(..., c)``; leading axes are independent runs.
            iterations: limit, at least 1; one iteration is a P step and a V step.
            generator: source of random draws, for V steps that draw.

        Returns:
            Every half step of every run.

        Raises:
            ValueError: for a limit below 1, a start of the wrong size, or a V step that draws
                without a generator.
        """
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if start.codes.shape[-1] != problem.dimension:
            raise ValueError(
                f"start must have {problem.dimension} codes per run, got {start.codes.shape[-1]}"
            )
        points, outcomes, reason = [start], [], "iteration limit"
        buffer = start.weights
        changed_at = np.zeros(start.codes.shape[:-1], dtype=np.int64)
        for iteration in range(1, iterations + 1):
            before = points[-1]
            gradient = problem.gradient(before.weights) if self.simultaneous else None
            fitted = self.p_step.step(problem, before, gradient=gradient)
            latent = buffer if self.simultaneous or self.v_step.keeps_buffer else None
            outcome = self.v_step.step(
                problem, fitted, buffer=latent, gradient=gradient, generator=generator
            )
            points += [fitted, outcome.point]
            outcomes.append(outcome)
            moved = _moved(before.weights, outcome.point.weights) | _moved(buffer, outcome.buffer)
            buffer = outcome.buffer
            changed_at[moved] = iteration
            if self.v_step.deterministic and not moved.any():
                reason = "fixed point"
                break
        return _record(problem, points, outcomes, reason, changed_at)


def _moved(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.bool_]:
    scale = np.maximum(np.abs(before), np.abs(after)).max(-1)
    return np.abs(after - before).max(-1) > _STILL * scale


def _record(
    problem: Problem,
    points: list[Point],
    outcomes: list[VOutcome],
    reason: StopReason,
    changed_at: NDArray[np.int64],
) -> Trajectory:
    return Trajectory(
        np.stack([problem.value(point.weights) for point in points]),
        np.stack([point.codes for point in points]),
        np.stack([point.values for point in points]),
        np.stack([outcome.smoothness for outcome in outcomes]),
        np.stack([outcome.certificate_gap for outcome in outcomes]),
        reason,
        changed_at,
    )
