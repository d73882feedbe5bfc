"""What a V step asks of a search: how far groups are from their targets, and moves of groups."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.core.layout import matrix_shape
from pvopt.metrics.contract import GroupCosts, Metric
from pvopt.metrics.diagonal import SeparableCosts
from pvopt.parametrizations.options import SearchOptions
from pvopt.parametrizations.query import Query
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Rounding
from pvopt.rules.subspace import Decreases, Subspace
from pvopt_kernels.ops import gather_groups

from .code_steps import CodeStep
from .moves import Moves, round_groups
from .ties import break_ties_

__all__ = ["DenseSearch", "GroupSearch", "StackedSearch"]

# Weights whose groups are compared at once: their norms take 8 MiB for groups of 8. Fewer would
# make more calls.
_COMPARED = 1 << 24
# In the first step, which needs four tensors of this size.
_RANKED = 1 << 22


class GroupSearch(ABC):
    r"""Search of new codes for the groups of a weight or of several, the values fixed.

    Attributes:
        coupled: whether the best code of a group depends on the codes of others.
    """

    coupled: bool = False

    @property
    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Squared norms of the weights ``[weights]``, once groups are selected."""

    @abstractmethod
    def select(
        self, subspace: Subspace, *, ordered: bool, gradients: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Let a rule select groups by the norms of the changes that they ask for.

        Args:
            subspace: the rule.
            ordered: whether the most important group must come first.
            gradients: ``[*shape]`` for each weight, which decide between groups that ask for nearly
                equal changes; None: their order does.

        Returns:
            Group numbers of each weight, and the norms of the changes, ``[weights, n]`` each; these
            may be left out where the rounding always takes the first candidate and the codes of
            groups are not coupled.
        """

    @abstractmethod
    def moves(self, groups: Tensor) -> Moves:
        """Round groups to their targets.

        Args:
            groups: ``[weights, n]`` distinct group numbers of each weight, the only ones that may
                move.
        """

    def squared_changes(self, moves: Moves) -> Tensor:
        """Return the squared norm of each move, ``[n]``."""
        return moves.changes.square().sum(1)


class StackedSearch(GroupSearch):
    """Euclidean search for all weights of a stack at once; no dense copy of a weight is made.

    Args:
        rep: codes and values, in the weights' own space.
        targets: ``[*shape]`` for each weight.
        rounding: which candidate to take.
        options: how hard a search tries.
        draws: source of random draws.
        code_step: lengthens the steps of the groups that are searched.
    """

    def __init__(
        self,
        rep: Representation,
        targets: Sequence[Tensor],
        *,
        rounding: Rounding,
        options: SearchOptions,
        draws: Draws | None,
        code_step: CodeStep | None = None,
    ) -> None:
        self.rep, self.targets, self.code_step = rep, targets, code_step
        self.rounding, self.options, self.draws = rounding, options, draws
        self._squared_norms: list[Tensor] = []

    @property
    def squared_norms(self) -> Tensor:
        return _joined(self._squared_norms)

    def select(
        self, subspace: Subspace, *, ordered: bool, gradients: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        # Norms of all groups are kept of a few weights at a time.
        most = _COMPARED if gradients is None else _RANKED
        matrices = 1 if self.draws is None else self.draws.matrices
        together = max(1, most // (matrices * math.prod(self.rep.inner_shape)))
        selected, asked, start = [], [], 0
        for part in self.rep.pieces(together, matrices):
            end = start + part.count
            targets = self.targets[start:end]
            changes, norms = part.parametrization.change_norms(part, targets)
            magnitudes = changes.sqrt_()
            if gradients is not None and subspace.ranks:
                break_ties_(magnitudes, part, gradients[start:end])
            draws = self.draws
            if draws is not None:
                draws = draws.narrow(start // matrices, part.count // matrices)
            groups = subspace.select(magnitudes, draws, ordered=ordered)
            selected.append(groups)
            self._squared_norms.append(norms)
            if not self.rounding.takes_first:
                asked.append(magnitudes.gather(1, groups))
            start = end
        return _joined(selected), _joined(asked) if asked else None

    def moves(self, groups: Tensor) -> Moves:
        rep = self.rep
        layout = rep.layout
        matrices = [t if t.dim() == 2 else t.reshape(matrix_shape(t.shape)) for t in self.targets]
        sizes = {"out_group": layout.out_group, "in_group": layout.in_group}
        goals = gather_groups(matrices, groups, **sizes).to(rep.dtype)
        numbers = rep.numbers(groups)
        if self.code_step is not None:
            goals = self.code_step.extend(goals, numbers)
        query = Query(
            target=goals.flatten(0, 1),
            rep=rep,
            groups=numbers,
            options=self.options,
            draws=self.draws,
        )
        return round_groups(query, self.rounding)


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
        self._magnitudes = self._norms.squared_norms(self.error).clamp_min_(0).sqrt_()[None]
        if self._norms.coupled or math.prod(rep.inner_shape) != math.prod(rep.shape):
            whole = rep.merge(self.decoded).square()
        else:  # what groups add is all there is
            whole = self._norms.squared_norms(self.decoded)
        self._squared_norms = whole.sum()[None]

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
        magnitudes, decreases = self._magnitudes, None
        if subspace.needs_decreases:
            decreases = Decreases(self._bounds(), self.decreases)
        if gradients is not None and subspace.ranks:
            break_ties_(magnitudes, self.rep, gradients)
        groups = subspace.select(magnitudes, self.draws, ordered=ordered, decreases=decreases)
        return groups, magnitudes.gather(1, groups)

    def squared_changes(self, moves: Moves) -> Tensor:
        return self._norms.squared_norms(moves.changes, moves.groups)

    def moves(self, groups: Tensor) -> Moves:
        groups = groups.flatten()
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

    def _bounds(self) -> Tensor:
        """Return what each group could lower the squared error by, halved, ``[num_groups]``."""
        return torch.where(self._magnitudes[0] > 0, self.costs.bounds(self.error), 0.0)

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


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
