"""Search for one weight in any space and metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.metrics.contract import GroupCosts, Metric
from pvopt.metrics.diagonal import SeparableCosts
from pvopt.parametrizations.options import SearchOptions
from pvopt.parametrizations.query import Query
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Rounding
from pvopt.rules.subspace import Decreases, Subspace

from .code_steps import CodeStep
from .moves import Moves, round_groups
from .searches import GroupSearch
from .ties import break_ties_

__all__ = ["DenseSearch"]


class DenseSearch(GroupSearch):
    """Search for one weight in any space and metric.

    Args:
        rep: codes and values of one weight.
        target: ``[*shape]``.
        metric: between weights, or None for the Euclidean.
        rounding: which candidate to take.
        options: how hard a search tries.
        draws: source of random draws.
        code_step: lengthens the steps of all groups.
    """

    def __init__(
        self,
        rep: Representation,
        target: Tensor,
        metric: Metric | None,
        *,
        rounding: Rounding,
        options: SearchOptions,
        draws: Draws | None,
        code_step: CodeStep | None = None,
    ) -> None:
        self.rep = rep
        self.rounding, self.options, self.draws = rounding, options, draws
        self.decoded = rep.parametrization.decode_groups(rep)
        self.target = rep.split(target.to(self.decoded.dtype))
        if code_step is not None:
            self.target = code_step.extend(self.target[None])[0]
        self.error = self.decoded - self.target
        self.costs = self._costs(metric)
        self.coupled = self.costs.coupled
        # Norms are those of weights, whatever the metric of the search and the space.
        self._norms = self._costs(None)
        self.magnitudes = self._norms.squared_norms(self.error).clamp_min_(0).sqrt_()[None]
        if self._norms.coupled:
            whole = rep.merge(self.decoded).square()
        elif math.prod(rep.inner_shape) != math.prod(rep.shape):  # without what is cut off
            whole = self._norms.squared_norms(rep.split(rep.merge(self.decoded)))
        else:  # what groups add is all there is
            whole = self._norms.squared_norms(self.decoded)
        self._squared_norms = whole.sum()[None]

    @property
    def weights(self) -> int:
        return self.rep.count

    @property
    def squared_norms(self) -> Tensor:
        return self._squared_norms

    def _costs(self, metric: Metric | None) -> GroupCosts:
        rep = self.rep
        inside = rep.space.enter_metric(metric, rep.shape, rep.owned)
        if inside is None:
            return SeparableCosts(None)
        return inside.costs(rep.layout, self.decoded)

    def select(
        self, subspace: Subspace, *, ordered: bool, gradients: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        magnitudes, decreases = self.magnitudes, None
        if subspace.needs_decreases:
            decreases = Decreases(self.bounds(), self.decreases)
        if gradients is not None and subspace.ranks:
            break_ties_(magnitudes, self.rep, gradients)
        groups = subspace.select(magnitudes, self.draws, ordered=ordered, decreases=decreases)
        return groups, magnitudes.gather(1, groups)

    def squared_changes(self, moves: Moves) -> Tensor:
        return self._norms.squared_norms(moves.changes, moves.groups)

    def moves(self, groups: Tensor, numbers: Tensor) -> Moves:
        groups = numbers  # of one weight
        error = self.error.clone() if self.coupled else self.error
        parts, places = [], []
        for number, index in self.costs.rounds(groups):
            chosen = groups[index]
            found = round_groups(self._query(number, chosen, error), self.rounding)
            if self.coupled:
                error.index_add_(0, chosen, found.changes)
            parts.append(found)
            places.append(index)
        if len(parts) == 1 and isinstance(places[0], slice):
            return parts[0]
        order = torch.cat(places).argsort()
        names = [f.name for f in fields(Moves)]
        joined = {n: torch.cat([getattr(part, n) for part in parts])[order] for n in names}
        return Moves(**joined)

    def _query(self, number: int, groups: Tensor, error: Tensor) -> Query:
        goals, metric = self.costs.goal(number, groups, self.target, self.decoded, error)
        return Query(
            target=goals,
            rep=self.rep,
            groups=groups,
            metric=metric,
            options=self.options,
            draws=self.draws,
            decoded=self.decoded.index_select(0, groups),
        )

    def bounds(self) -> Tensor:
        """Return what each group could lower the squared error by, halved, ``[num_groups]``."""
        return torch.where(self.magnitudes[0] > 0, self.costs.bounds(self.error), 0.0)

    def decreases(self, groups: Tensor) -> Tensor:
        """Return what groups lower half of the squared error by when each alone moves.

        Args:
            groups: ``[n]`` distinct group numbers.

        Returns:
            ``[n]``, non-negative; 0 for a group whose present code is the best. The same in any
            batch: random draws are repeated.
        """
        result = self.decoded.new_empty(len(groups))
        for number, index in self.costs.rounds(groups):
            chosen = groups[index]
            query = self._query(number, chosen, self.error)
            if self.draws is not None:
                query = query.but(draws=self.draws.copy())
            away = query.target - query.present
            metric = query.metric
            present = away.square().sum(1) if metric is None else metric.squared_norms(away)
            found = self.rep.parametrization.candidates(query)
            result[index] = (0.5 * (present - found.errors[:, 0])).clamp_min_(0)
        return result
