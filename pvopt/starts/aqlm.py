"""AQLM: Adam on the values alternating with a search of the codes, in the metric of the inputs."""

from __future__ import annotations

import math
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

__all__ = ["AQLM"]


@STARTS.register(ShortForm.word("aqlm", "codes and values in turn, for the layer's outputs"))
@dataclass(frozen=True, kw_only=True)
class AQLM(Start):
    r"""Alternate the best codes and the best values for the layer's outputs.

    .. math:: \min_{z, v} \; \mathrm{tr}\,(W - \mathrm{decode}(z, v))\, H\,
        (W - \mathrm{decode}(z, v))'

    The start is the weighted fit (for codebooks residual k-means, weighted by the diagonal of H),
    with codes chosen by the recursion of :class:`GPTQ`. A round is a search of all codes in the
    metric ``H``, block column by block column with a beam (:func:`pvopt.row_metric_search`), then
    Adam on codebooks, scales and other values. No half of it raises the error: Adam's best iterate
    is kept. It ends when a round lowers the error by less than a tolerance.

    Args:
        max_rounds: limit of the rounds.
        tolerance: relative decrease of the squared error below which a round is the last.
        steps: Adam's steps per round.
        lr: Adam's learning rate in units of the root mean square of each value tensor, falling
            linearly to a tenth within a round.
        damping: fraction of the Hessian's mean diagonal that is added to it.
        search_options: how hard the searches of codes try.
        fit_options: how hard the weighted fit tries.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from pvopt import AdditiveCodebooks, Row
        >>> from pvopt.starts import AQLM
        >>> draws = torch.Generator().manual_seed(0)
        >>> inputs = torch.randn(64, 4, generator=draws) @ torch.randn(4, 16, generator=draws)
        >>> weight = torch.randn(32, 16, generator=draws)
        >>> metric = Row(inputs.T @ inputs)
        >>> books = AdditiveCodebooks(num_codebooks=2, bits=4, in_group=4)
        >>> rep = AQLM().start(weight, books, metric=metric)
        >>> error = metric.relative_error(weight, rep.decode())
        >>> error < 0.7 * metric.relative_error(weight, books.fit(weight).decode())
        True

    References:
        AQLM (arXiv 2401.06118), sections 3.1 to 3.3.
    """

    max_rounds: int = 4
    tolerance: float = 0.02
    steps: int = 30
    lr: float = 0.01
    damping: float = 1e-3
    search_options: SearchOptions = field(default_factory=SearchOptions)
    fit_options: FitOptions = field(default_factory=FitOptions)

    needs_metric = Row

    def __post_init__(self) -> None:
        check_integer("max_rounds", self.max_rounds, 1, 1000)
        check_integer("steps", self.steps, 0, 100_000)
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), got {self.tolerance}")
        check_number("lr", self.lr, 0.0, above=True)
        check_number("damping", self.damping, 0.0)

    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        metric: Metric | None,
        generator: torch.Generator,
    ) -> Representation:
        assert isinstance(metric, Row)
        # GPTQ's recursion leaves an error for all later columns to make up for; a first pass of
        # the search does not look ahead. Layer error of a q_proj of SmolLM2 at 2x8g8, two rounds:
        # 0.091 with it, 0.099 without (k-means alone: 0.131).
        first = GPTQ(search_options=self.search_options, fit_options=self.fit_options)
        rep = first._start(weight, parametrization, metric, generator)
        own = damped_cholesky(metric, self.damping)[0].normalized().to(weight.device, weight.dtype)
        error = float(own.squared_norm(rep.decode() - weight))
        for _ in range(self.max_rounds):
            row_metric_search(rep, weight, own, options=self.search_options, generator=generator)
            before, error = error, self._tune_values(rep, weight, own)
            if not error < (1 - self.tolerance) * before:
                break
        return rep

    def _tune_values(self, rep: Representation, weight: Tensor, metric: Row) -> float:
        """Run Adam on the values, leave the best ones; return their squared error."""
        values = list(rep.values.values())
        sizes = [float(v.square().mean().sqrt()) or 1.0 for v in values]
        groups = [{"params": [v], "lr": self.lr * s} for v, s in zip(values, sizes, strict=True)]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.95))
        fall = torch.optim.lr_scheduler.LambdaLR(adam, lambda t: 1 - 0.9 * t / max(1, self.steps))
        best, kept = math.inf, [v.clone() for v in values]
        for step in range(self.steps + 1):
            difference = (rep.decode() - weight).view(-1, len(metric.hessian))
            gradient = difference @ metric.hessian  # half of it
            error = float((difference * gradient).sum())
            if error < best:
                best = error
                for value, old in zip(values, kept, strict=True):
                    old.copy_(value)
            if step == self.steps:
                break
            pulled = rep.pull([gradient.view(rep.shape)])
            for name, value in rep.values.items():
                value.grad = pulled[name]
            adam.step()
            fall.step()
        for value, old in zip(values, kept, strict=True):
            value.grad = None
            value.copy_(old)
        return best
