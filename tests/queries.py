"""Searches and V steps, asked for in one line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvopt import Candidates, Draws, Query, Representation, SearchOptions, v_step
from pvopt.metrics.contract import GroupMetric
from pvopt.metrics.diagonal import GroupDiagonal


def ask(
    rep: Representation,
    target: Tensor,
    groups: Tensor | None = None,
    count: int = 1,
    *,
    metric: GroupMetric | Tensor | None = None,
    generator: torch.Generator | None = None,
    beam: int | None = None,
) -> Query:
    """Return a query; weights of squared errors may be given as they are."""
    return Query(
        target=target,
        rep=rep,
        groups=groups,
        count=count,
        metric=GroupDiagonal(metric) if isinstance(metric, Tensor) else metric,
        options=SearchOptions(beam_size=beam),
        draws=Draws.of(generator, rep.device),
    )


def candidates(rep: Representation, target: Tensor, *arguments: Any, **more: Any) -> Candidates:
    """Return the candidates of a query."""
    return rep.parametrization.candidates(ask(rep, target, *arguments, **more))


def step(rep: Representation, target: Tensor, **rules: Any) -> int:
    """Take a V step of one weight; return how many groups changed."""
    return int(v_step(rep, target, **rules))
