"""Euclidean search for all weights of a stack at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.core.layout import matrix_shape
from pvopt.parametrizations.options import SearchOptions
from pvopt.parametrizations.query import Query
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Rounding
from pvopt.rules.subspace import Farthest, Subspace
from pvopt_kernels.ops import gather_groups

from .code_steps import CodeStep
from .moves import Moves, round_groups
from .searches import GroupSearch
from .ties import break_ties_

__all__ = ["StackedSearch"]

# Weights whose groups are compared at once: their norms take 8 MiB for groups of 8. Fewer would
# make more calls.
_COMPARED = 1 << 24
# In the first step, which needs four tensors of this size.
_RANKED = 1 << 21


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
    def weights(self) -> int:
        return self.rep.count

    @property
    def squared_norms(self) -> Tensor:
        return _joined(self._squared_norms)

    def select(
        self, subspace: Subspace, *, ordered: bool, gradients: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        if subspace.reads_largest and gradients is None:
            return self._select_largest(subspace.select, ordered)
        # Norms of all groups are kept of a few weights at a time.
        most = _COMPARED if gradients is None else _RANKED
        matrices = 1 if self.draws is None else self.draws.matrices
        together = max(1, most // (matrices * math.prod(self.rep.inner_shape)))
        parts = self.rep.pieces(together, matrices)
        selected = asked = memory = None
        start = 0
        for part in parts:
            end = start + part.count
            targets = self.targets[start:end]
            changes, norms = part.parametrization.change_norms(part, targets)
            magnitudes = changes.sqrt_()
            if gradients is not None and subspace.ranks:
                memory = break_ties_(magnitudes, part, gradients[start:end], memory)
            draws = self.draws
            if draws is not None:
                draws = draws.narrow(start // matrices, part.count // matrices)
            groups = subspace.select(magnitudes, draws, ordered=ordered)
            self._squared_norms.append(norms)
            own = None if self.rounding.takes_first else magnitudes.gather(1, groups)
            if len(parts) == 1:
                return groups, own
            # What is kept of each piece would lie in the holes that the next norms fit into.
            if selected is None:
                selected = groups.new_empty(self.rep.count, groups.shape[1])
                asked = None if own is None else own.new_empty(selected.shape)
            selected[start:end] = groups
            if asked is not None and own is not None:
                asked[start:end] = own
            start = end
        assert selected is not None
        return selected, asked

    def _select_largest(
        self, select: Callable[..., Tensor], ordered: bool
    ) -> tuple[Tensor, Tensor | None]:
        asked: list[Tensor] = []

        def find(count: int) -> Tensor:
            norms, groups, weights = self.rep.parametrization.largest_changes(
                self.rep, self.targets, count
            )
            if not self.rounding.takes_first:
                asked.append(norms)
            self._squared_norms.append(weights)
            return groups

        changes = Farthest(self.rep.layout.num_groups, find)
        groups = select(changes, self.draws, ordered=ordered)
        return groups, asked[0] if asked else None

    def moves(self, groups: Tensor, numbers: Tensor) -> Moves:
        rep = self.rep
        layout = rep.layout
        matrices = [t if t.dim() == 2 else t.reshape(matrix_shape(t.shape)) for t in self.targets]
        sizes = {"out_group": layout.out_group, "in_group": layout.in_group}
        goals = gather_groups(matrices, groups, **sizes).to(rep.dtype)
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


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
