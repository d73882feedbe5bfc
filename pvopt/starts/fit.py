"""The parametrization's own fit as a start."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_bool
from pvopt.metrics.contract import Metric
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.representation import Representation

from .contract import STARTS, Start

__all__ = ["Fit"]


@dataclass(frozen=True, kw_only=True)
class Fit(Start):
    r"""Start by :meth:`pvopt.Scheme.fit`, with or without the size of the inputs.

    .. math:: \min_{z, v} \sum_{ij} d_{ij} (W_{ij} - W_{q,ij})^2, \qquad
        d_{ij} = 1 \;\text{or the metric's diagonal, such as}\; H_{jj}

    For :class:`pvopt.UniformGrid` this is rounding to nearest with a search of the clipping, for
    codebooks (weighted, residual) k-means, for sparse weights the largest magnitudes.

    Args:
        weighted: whether errors count as much as the inputs they meet, by the diagonal of the
            metric; otherwise no data is needed.
        fit_options: how hard to try.

    Raises:
        TypeError: if ``weighted`` is not a bool.

    Example:
        >>> import torch
        >>> from pvopt import UniformGrid
        >>> from pvopt.starts import Fit
        >>> rep = Fit().start(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), UniformGrid(bits=2))
        >>> rep.decode()
        tensor([[0., 1., 2., 3.]])
    """

    weighted: bool = False
    fit_options: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        check_bool("weighted", self.weighted)

    @property
    def needs_metric(self) -> type[Metric] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Metric if self.weighted else None

    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        metric: Metric | None,
        generator: torch.Generator,
    ) -> Representation:
        if self.weighted and metric is not None:
            metric = metric.normalized()
        return parametrization.fit(
            weight, metric=metric, options=self.fit_options, generator=generator
        )


STARTS.register(
    ShortForm(
        form="fit[:weighted]",
        meaning="the format's own fit, without data; weighted: by the size of the inputs",
        example="fit, fit:weighted",
        pattern=r"fit(:weighted)?",
        settings=lambda weighted: dict(weighted=weighted is not None),
        write=lambda start: "fit:weighted" if start.weighted else "fit",
    )
)(Fit)
