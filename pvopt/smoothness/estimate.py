"""Smoothness constants of a loss along nested subspaces, on a gradient path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .objective import Loss, Objective, Parameters, resolve, unchanged
from .power_iteration import largest_curvature
from .quotients import GradientSteps
from .settings import SmoothnessSettings
from .subspaces import NestedSubspaces
from .vectors import Vector, random_like

__all__ = ["SmoothnessEstimate", "estimate_smoothness"]


@dataclass(frozen=True)
class SmoothnessEstimate:
    """The constants of one fraction by one estimator.

    Args:
        fraction: share of the coordinates or groups of every weight.
        estimator: ``quotient`` or ``power``.
        constants: ``[draws][path_steps]``, in units of the loss per squared unit of the weights.
    """

    fraction: float
    estimator: str
    constants: tuple[tuple[float, ...], ...]

    @property
    def constant(self) -> float:
        """The largest constant of all draws and path steps."""
        return max(max(draw) for draw in self.constants)


def estimate_smoothness(
    model: nn.Module,
    loss: Loss,
    parameters: Parameters = None,
    settings: SmoothnessSettings | None = None,
    *,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> list[SmoothnessEstimate]:
    r"""Estimate how smooth a loss is along random subspaces of a model's weights.

    For coordinate subsets S, at the points of a gradient path
    :math:`x_{k+1} = x_k - g(x_k) / L`,

    .. math::
        q_S(x) = \frac{\|g_S(x') - g_S(x)\|}{\|x'_S - x_S\|},\quad x' = x - g_S(x) / L_S;
        \qquad
        \lambda_S(x) = \|\nabla^2\varphi(x)_{SS}\|_2

    by difference quotients over a gradient step in S, and by power iteration on Hessian-vector
    products restricted to S. The largest over the path estimates the smoothness constant
    :math:`L_S`. Both are estimates from below: a quotient sees the curvature along one step, and
    a power iteration that is stopped early has not arrived. :math:`\lambda_S(x)` is
    monotone in S, and subsets of one draw are nested.

    The model is given back as it was, also after an error: weights, gradients, buffers, training
    modes, random state. Meanwhile the weights move in place, so nothing else may use them.

    Args:
        model: any module with weights in float32 or float64, in the mode in which it is wanted.
        loss: ``loss(model)`` returns the scalar loss; the same function at every call. Random
            numbers from PyTorch's global generators (dropout) are the same at every call.
        parameters: the weights that are variables: parameters of the model,
            :class:`~pvopt.QuantizedWeights`, or None for all that require a gradient.
        settings: fractions, estimators and work; None: the defaults.
        generator: of the subsets and of the first directions.
        progress: called with the numbers of finished and of all constants of one estimator.

    Returns:
        One estimate for every estimator and fraction, in the order of the settings.

    Raises:
        TypeError: for weights of another dtype, or a loss that is not a scalar.
        ValueError: for parameters that do not fit, or derivatives that are not finite.
        RuntimeError: if ``power`` is asked for and the loss cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt.smoothness import SmoothnessSettings, estimate_smoothness
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> def loss(model):  # a quadratic with the curvatures 1 and 9
        ...     return (model.weight**2 * torch.tensor([0.5, 4.5])).sum()
        >>> settings = SmoothnessSettings(fractions=(0.5, 1.0), path_steps=2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for found in estimate_smoothness(model, loss, settings=settings, generator=generator):
        ...     print(found.estimator, found.fraction, f"{found.constant:.2f}")
        quotient 0.5 1.00
        quotient 1.0 9.00
        power 0.5 1.00
        power 1.0 9.00

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3 and the appendix on smoothness constants.
    """
    settings = SmoothnessSettings() if settings is None else settings
    variables, layouts = resolve(model, parameters, settings.units)
    ascending = tuple(sorted(settings.fractions))
    with unchanged(model, variables):
        subspaces = [
            NestedSubspaces(variables, ascending, layouts, generator) for _ in range(settings.draws)
        ]
        run = _Run(model, loss, variables, ascending, subspaces, settings, generator, progress)
        run.follow_path()
    return [
        SmoothnessEstimate(
            fraction,
            estimator,
            tuple(
                tuple(run.found[estimator, draw, ascending.index(fraction)])
                for draw in range(settings.draws)
            ),
        )
        for estimator in settings.estimators
        for fraction in settings.fractions
    ]


class _Run:
    """One walk along the path, with all constants found on the way."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        variables: list[nn.Parameter],
        fractions: tuple[float, ...],
        subspaces: list[NestedSubspaces],
        settings: SmoothnessSettings,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        twice = "power" in settings.estimators
        self._objective = Objective(model, loss, variables, twice=twice)
        self._fractions = fractions
        self._subspaces = subspaces
        self._settings = settings
        self._generator = generator
        self._progress = progress
        self._places = [(d, i) for d in range(len(subspaces)) for i in range(len(fractions))]
        self._path = GradientSteps(self._objective, settings.probe)
        self._steps = {
            place: GradientSteps(self._objective, settings.probe) for place in self._places
        }
        # Directions of largest curvature in the largest subset of every draw.
        self._directions: dict[int, Vector] = {}
        self.found: dict[tuple[str, int, int], list[float]] = {
            (name, *place): [] for name in settings.estimators for place in self._places
        }
        self._done = 0

    def follow_path(self) -> None:
        """Estimate all constants at every point."""
        asked = "quotient" in self._settings.estimators
        whole = self._fractions[-1] == 1 and asked
        for number in range(self._settings.path_steps):
            gradient = self._curvatures() if self._objective.twice else self._objective.gradient()
            point = [p.detach().clone() for p in self._objective.parameters]
            if asked:
                self._quotients(point, gradient)
            if not whole and number + 1 == self._settings.path_steps:
                break  # nobody asks for the next point
            # The weights stay at the next point.
            constant = self._path.step_(point, gradient, None)
            for draw, i in self._places:
                if whole and i == len(self._fractions) - 1:
                    self._record("quotient", draw, i, constant)

    def _curvatures(self) -> Vector:
        """Run the power iterations at the present point and return the gradient there."""
        gradient, product = self._objective.curvature()
        for draw, subspaces in enumerate(self._subspaces):
            direction = self._directions.get(draw)
            for i in reversed(range(len(self._fractions))):
                warm = direction is not None
                start = random_like(gradient, self._generator) if direction is None else direction
                constant, direction = largest_curvature(
                    product,
                    lambda vector, i=i, subspaces=subspaces: subspaces.project_(vector, i),
                    start,
                    warm=warm,
                    iterations=self._settings.iterations,
                    tolerance=self._settings.tolerance,
                    generator=self._generator,
                )
                if i == len(self._fractions) - 1:
                    self._directions[draw] = direction
                self._record("power", draw, i, constant)
        return gradient

    def _quotients(self, point: Vector, gradient: Vector) -> None:
        """Take the steps in the proper subsets; the path itself has all coordinates."""
        for draw, i in self._places:
            if self._fractions[i] < 1:
                masks = self._subspaces[draw].masks(i)
                constant = self._steps[draw, i].step_(point, gradient, masks)
                self._record("quotient", draw, i, constant)
        with torch.no_grad():
            for p, x in zip(self._objective.parameters, point, strict=True):
                p.copy_(x)

    def _record(self, estimator: str, draw: int, fraction: int, constant: float) -> None:
        self.found[estimator, draw, fraction].append(constant)
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, len(self.found) * self._settings.path_steps)
