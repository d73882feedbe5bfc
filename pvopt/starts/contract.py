"""The contract of every way to start a representation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.registry import Registry
from pvopt.metrics.contract import Metric
from pvopt.metrics.matrices import WeightMetric
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import OPTIONS
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme, as_scheme

__all__ = ["STARTS", "Start", "parse_start", "usual_start"]

#: Starts by name.
STARTS: Registry[Start] = Registry("start")
STARTS.nests(OPTIONS)


class Start(ABC):
    """How a dense weight gets its first codes and values; a frozen dataclass of settings.

    A subclass defines ``_start``, which works in the space of the groups, and registers itself in
    :data:`STARTS`; :meth:`start` checks its arguments, enters the space and leaves it.
    """

    #: The kind of metric that it works in; None for a start that looks at the weight alone.
    needs_metric: ClassVar[type[Metric] | None] = None

    @property
    def name(self) -> str:
        """The short name, losslessly; the inverse of :func:`parse_start`."""
        return STARTS.name(self)

    @torch.no_grad()
    def start(
        self,
        weight: Tensor,
        scheme: Parametrization | Scheme,
        *,
        metric: WeightMetric | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        r"""Return a representation that is close to a weight: in a metric, if the start needs one.

        With the metric of the layer's inputs it keeps the layer's outputs close:

        .. math:: \min_{z, v} \; \|X (W - W_q)'\|_F^2 = \mathrm{tr}\, (W - W_q) H (W - W_q)',
            \qquad H = X'X

        Args:
            weight: ``[*shape]``, floating; computed in at least float32, seen as a matrix
                ``[out, in]``.
            scheme: the settings of the representation.
            metric: such as :class:`pvopt.Row` of ``X'X`` for the layer's inputs ``X``
                ``[tokens, in]``. Any positive multiple gives the same start, up to rounding: the
                sum over tokens or their mean; one for each expert, or one for all. Ignored by
                starts that need none.
            generator: source of every random draw, on the weight's device; None draws from a fresh
                one seeded with 0.

        Returns:
            Codes and values of the weight; the values have the weight's dtype, at least float32.

        Raises:
            TypeError: if the weight is not floating, the metric is of another kind than the start
                needs or does not exist in the space, or the start does not suit the
                parametrization.
            ValueError: if a metric is missing or does not fit the weight, the weight is not finite,
                or groups do not fit the weight.
        """
        scheme, kind = as_scheme(scheme), self.needs_metric
        if kind is None:
            metric = None
        elif metric is None:
            raise ValueError(
                f"{type(self).__name__} needs the metric of the layer's inputs, Row(X'X), got None"
            )
        else:  # float64: Hessians of few tokens are nearly singular
            metric = _moved(metric, weight.device)
        source = torch.Generator(weight.device).manual_seed(0) if generator is None else generator

        def inside(inner: Tensor, own: Metric | None) -> Representation:
            if kind is not None and not isinstance(own, kind):
                raise TypeError(
                    f"{type(self).__name__} needs a metric {kind.__name__} in the space of the "
                    f"groups, got {type(own).__name__}"
                )
            return self._start(inner, scheme.parametrization, own, source)

        return scheme.start_inside(weight, metric, inside)

    @abstractmethod
    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        metric: Metric | None,
        generator: torch.Generator,
    ) -> Representation:
        """Start a representation in the space of the groups; the arguments are checked.

        Args:
            weight: ``[*shape]``, contiguous, finite, at least float32. Not to be changed.
            parametrization: the settings of the representation.
            metric: in the space, of the kind that the start needs, in float64; possibly singular.
                A start that needs none is given the space's Euclidean one: None, or the weights of
                squared errors in a space that is no isometry.
            generator: source of every random draw.

        Returns:
            Codes and values of the weight.
        """


def _moved(metric: WeightMetric, device: torch.device) -> WeightMetric:
    if isinstance(metric, Metric):
        return metric.to(device, torch.float64)
    return [own if own is None else own.to(device, torch.float64) for own in metric]


def parse_start(text: str) -> Start:
    """Make a start of its short name.

    Args:
        text: such as ``"gptq"``. Settings follow in brackets: ``"gptq[damping=0.02]"``.

    Returns:
        The start.

    Raises:
        ValueError: if no start has the name, or a setting is out of range.

    Example:
        >>> from pvopt.starts import parse_start
        >>> parse_start("gptq[damping=0.02]").damping, parse_start("fit:weighted").name
        (0.02, 'fit:weighted')
    """
    return STARTS.parse(text)


def usual_start(scheme: Parametrization | Scheme) -> Start:
    """Return the calibrated start that suits a scheme, as its parametrization declares it.

    Args:
        scheme: of the weights.

    Example:
        >>> from pvopt import UniformGrid, parse_scheme
        >>> from pvopt.starts import usual_start
        >>> usual_start(UniformGrid(bits=4)).name, usual_start(parse_scheme("had+e8p:2")).name
        ('gptq', 'aqlm')
    """
    return parse_start(as_scheme(scheme).parametrization.usual_start)
