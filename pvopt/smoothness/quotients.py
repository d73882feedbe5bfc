"""Difference quotients of the gradient along gradient steps in a subspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import Objective
from .vectors import Vector, difference, norm


@dataclass
class GradientSteps:
    r"""Gradient steps of length 1/L in one subspace, and the quotients that they show.

    .. math:: q = \frac{\|g_S(x') - g_S(x)\|}{\|x'_S - x_S\|}, \qquad x' = x - g_S(x) / L

    L is the quotient of the step before; a first, very short step finds one to begin with.

    Args:
        objective: the loss, at the point x.
        probe: length of the first step, relative to the norm of all weights.
    """

    objective: Objective
    probe: float
    smoothness: float | None = None

    @torch.no_grad()
    def step_(self, point: Vector, gradient: Vector, masks: Sequence[Tensor] | None) -> float:
        """Move the weights by one step and return its quotient.

        Args:
            point: x, where the weights are now.
            gradient: g(x), all coordinates.
            masks: which coordinates belong to S; None: all.

        Returns:
            The quotient; 0 where the gradient vanishes or does not change: no step is made then.
        """
        direction = gradient if masks is None else _masked(gradient, masks)
        length = norm(direction)
        if length == 0:
            return 0.0
        if self.smoothness is None:
            size = norm(point) or 1.0
            self.smoothness = self._quotient(
                point, gradient, direction, self.probe * size / length, masks
            )
        if self.smoothness == 0:
            return 0.0
        self.smoothness = self._quotient(point, gradient, direction, 1 / self.smoothness, masks)
        return self.smoothness

    def _quotient(
        self,
        point: Vector,
        gradient: Vector,
        direction: Vector,
        rate: float,
        masks: Sequence[Tensor] | None,
    ) -> float:
        parameters = self.objective.parameters
        for p, x, d in zip(parameters, point, direction, strict=True):
            p.copy_(x).sub_(d, alpha=rate)
        # What the weights really moved, after rounding.
        moved = norm(difference(parameters, point))
        if moved == 0:
            raise ValueError(
                f"a step of {rate:.3g} times the gradient is lost in the rounding of the weights; "
                "take a larger probe or float64"
            )
        change = difference(self.objective.gradient(), gradient)
        return norm(change if masks is None else _masked(change, masks)) / moved


def _masked(vector: Sequence[Tensor], masks: Sequence[Tensor]) -> Vector:
    return [t * mask for t, mask in zip(vector, masks, strict=True)]
