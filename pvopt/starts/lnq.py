"""LNQ: closed-form values alternating with coordinate descent over the codes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_integer, check_number
from pvopt.engine.column_search import row_metric_search
from pvopt.metrics.contract import Metric
from pvopt.metrics.row import Row
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import FitOptions, SearchOptions
from pvopt.parametrizations.representation import Representation

from .contract import STARTS, Start
from .damping import damped_cholesky
from .gptq import GPTQ
from .linear_values import MOST_ENTRIES, fit_values_

__all__ = ["LNQ"]


@STARTS.register(ShortForm.word("lnq", "grids and tables: codes and exact values in turn"))
@dataclass(frozen=True, kw_only=True)
class LNQ(Start):
    r"""Alternate the best values, in closed form, with a descent over the codes, one by one.

    .. math:: \min_{z, v} \; \mathrm{tr}\,(W - \mathrm{decode}(z, v))\, H\,
        (W - \mathrm{decode}(z, v))'

    From the start of :class:`GPTQ`, whose codes make up for errors of earlier columns only, and
    whose values were fitted before the codes were known. A round solves for scales, zero points or
    the shared table by least squares, then visits every column once and gives each code its best,
    all others fixed (:func:`pvopt.row_metric_search`). No half of a round raises the error. It
    ends when a round lowers the error by less than a tolerance.

    Args:
        max_rounds: limit of the rounds.
        tolerance: relative decrease of the squared error below which a round is the last.
        damping: fraction of the Hessian's mean diagonal that is added to it; more where that does
            not make it positive definite.
        search_options: how hard the searches of codes try.
        fit_options: how hard the first fits of values try.

    Raises:
        TypeError: if ``max_rounds`` is not an integer; on use, if values neither belong to columns
            of their own nor are a table of at most 256 entries.
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from pvopt import Row, UniformGrid
        >>> from pvopt.starts import GPTQ, LNQ
        >>> draws = torch.Generator().manual_seed(0)
        >>> inputs = torch.randn(64, 4, generator=draws) @ torch.randn(4, 16, generator=draws)
        >>> weight = torch.randn(8, 16, generator=draws)
        >>> metric, grid = Row(inputs.T @ inputs), UniformGrid(bits=2)
        >>> rep, gptq = (start.start(weight, grid, metric=metric) for start in (LNQ(), GPTQ()))
        >>> error = metric.relative_error(weight, rep.decode())
        >>> error < 0.8 * metric.relative_error(weight, gptq.decode())
        True

    References:
        GuidedQuant (arXiv 2505.07004), section 4, on LNQ.
    """

    max_rounds: int = 10
    tolerance: float = 0.01
    damping: float = 0.01
    search_options: SearchOptions = field(default_factory=SearchOptions)
    fit_options: FitOptions = field(default_factory=FitOptions)

    needs_metric = Row

    def __post_init__(self) -> None:
        check_integer("max_rounds", self.max_rounds, 0, 1000)
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), got {self.tolerance}")
        check_number("damping", self.damping, 0.0)

    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        metric: Metric | None,
        generator: torch.Generator,
    ) -> Representation:
        assert isinstance(metric, Row)
        shape = tuple(weight.shape)
        tables = parametrization.value_shapes(shape).values()
        largest = max(torch.Size(size).numel() for size in tables)
        if parametrization.value_columns(shape) is None and largest > MOST_ENTRIES:
            raise TypeError(
                "LNQ starts grids, and formats whose values are tables of at most "
                f"{MOST_ENTRIES} entries, got {type(parametrization).__name__} with {largest}"
            )
        first = GPTQ(
            damping=self.damping, search_options=self.search_options, fit_options=self.fit_options
        )
        rep = first._start(weight, parametrization, metric, generator)
        own = damped_cholesky(metric, self.damping)[0].normalized().to(weight.device, weight.dtype)
        error = float(own.squared_norm(rep.decode() - weight))
        for _ in range(self.max_rounds):
            fit_values_(rep, weight, own)
            row_metric_search(rep, weight, own, options=self.search_options, generator=generator)
            before, error = error, float(own.squared_norm(rep.decode() - weight))
            if not error < (1 - self.tolerance) * before:
                break
        fit_values_(rep, weight, own)
        return rep
