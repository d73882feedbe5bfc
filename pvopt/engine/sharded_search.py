"""Euclidean search where each process holds some rows of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.parametrizations.representation import Representation
from pvopt.rules.subspace import Subspace
from pvopt.rules.trust_region import TrustRegion
from pvopt_kernels.ops import largest

from .exchange import Channel, Exchange, Gather, Sum
from .moves import Moves
from .searches import Selection
from .stacked_search import StackedSearch
from .ties import break_ties_, group_norms

__all__ = ["ShardedSearch", "Share"]

# A product of few rows is rounded otherwise than one of many, on some processors.
_LEAST = 16


@dataclass(frozen=True)
class Share:
    """Which of the groups of a weight this process holds.

    Args:
        channel: the processes.
        counts: number of groups of each process, in order.
        rank: of this process.
    """

    channel: Channel
    counts: Sequence[int]
    rank: int

    @property
    def first(self) -> int:
        """Number of groups before those of this process."""
        return sum(self.counts[: self.rank])

    @property
    def total(self) -> int:
        """Number of groups of the weight."""
        return sum(self.counts)

    @property
    def empty(self) -> bool:
        """Whether this process has none of them; what it works on counts for nothing."""
        return self.counts[self.rank] == 0


class ShardedSearch(StackedSearch):
    """Euclidean search where each process holds some rows of the weights.

    Args:
        rep: codes and values of the rows of this process.
        targets: those rows of each weight.
        share: which groups these are.
        settings: as in :class:`StackedSearch`.
    """

    def __init__(
        self, rep: Representation, targets: Sequence[Tensor], *, share: Share, **settings: Any
    ) -> None:
        super().__init__(rep, targets, **settings)
        self.share = share
        self._whole_draws = self.draws

    def selection(
        self, subspace: Subspace, *, ordered: bool, gradients: Sequence[Tensor] | None
    ) -> Exchange[Selection]:
        share, rep = self.share, self.rep
        held = rep.layout.num_groups
        every = torch.arange(held, device=rep.device)[None]
        first = every if share.empty else every + share.first
        if subspace.count(share.total) == share.total and not ordered:
            groups = every.expand(rep.count, -1)
            self.draws = self._picking(share.total, first.expand(rep.count, -1))
            asked = None if self.rounding.takes_first else self._magnitudes(0, rep.count)
            return Selection(groups, asked)
        means = None
        if gradients is not None and subspace.ranks:
            means = yield from self._gradient_means(gradients)
        count = subspace.count(share.total)
        keys, groups, asked = self._own_largest(subspace, min(count, held), first, gradients, means)
        most = min(count, max(share.counts))
        padded = torch.nn.functional.pad(keys, (0, most - keys.shape[1]))
        found = yield Gather(share.channel, padded)
        places = places_among(found, share, count)[:, : keys.shape[1]]
        allowed = places < count
        # Most first: those of this process that are among the largest of all.
        longest = int(allowed.sum(1).max())
        size = min(keys.shape[1], max(longest, _LEAST))
        places = places[:, :size].clamp_max(count - 1)
        self.draws = self._picking(count, places)
        chosen = None if asked is None else asked[:, :size]
        return Selection(groups[:, :size], chosen, allowed[:, :size], places, count)

    def _picking(self, count: int, places: Tensor) -> Draws | None:
        return None if self._whole_draws is None else self._whole_draws.picking(count, places)

    def _magnitudes(self, start: int, end: int) -> Tensor:
        part = self.rep.narrow(start, end - start)
        changes, _ = part.parametrization.change_norms(part, self.targets[start:end])
        return changes.sqrt_()

    def _own_largest(
        self,
        subspace: Subspace,
        count: int,
        first: Tensor,
        gradients: Sequence[Tensor] | None,
        means: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the largest keys of each weight in order, their groups, and what these ask for."""
        rep = self.rep
        if subspace.reads_largest and gradients is None:
            norms, groups, _ = rep.parametrization.largest_changes(rep, self.targets, count)
            return norms, groups, norms
        found, memory = [], None
        for start in range(rep.count):  # keys of all groups are kept of one weight at a time
            magnitudes = self._magnitudes(start, start + 1)
            own = rep.narrow(start, 1)
            if means is not None and gradients is not None:
                parts = gradients[start : start + 1], memory, means[start : start + 1]
                memory = break_ties_(magnitudes, own, *parts)
            draws = Draws.of(self._whole_draws, rep.device).narrow(start, 1)
            keys = subspace.keys(magnitudes, draws.picking(self.share.total, first))
            values, groups = largest(keys, count)
            found.append((values, groups, magnitudes.gather(1, groups)))
        keys, groups, asked = (torch.cat(parts) for parts in zip(*found, strict=True))
        return keys, groups, asked

    def _gradient_means(self, gradients: Sequence[Tensor]) -> Exchange[Tensor]:
        """Return the mean norm of the gradients of all groups of each weight."""
        norms = self.rep.layout.num_groups
        row = gradients[0].new_empty(norms, dtype=self.rep.dtype)
        sums = [group_norms(self.rep, g, out=row).sum(dtype=torch.float64) for g in gradients]
        own = torch.stack(sums)
        total = yield Sum(self.share.channel, self._counted(own))
        return total / self.share.total

    def _counted(self, numbers: Tensor) -> Tensor:
        return torch.zeros_like(numbers) if self.share.empty else numbers

    def accepted(
        self, trust_region: TrustRegion, moves: Moves, selection: Selection
    ) -> Exchange[Tensor]:
        weights, count = self.rep.count, selection.count
        places, allowed = selection.places, selection.allowed
        assert places is not None
        assert allowed is not None
        changes = self.squared_changes(moves).view(weights, -1).double()
        # Each process fills in the places of its own groups.
        of_all = changes.new_zeros(weights, count).scatter_add_(1, places, changes * allowed)
        norms = torch.stack([own.decode().double().square().sum() for own in self.rep.members()])
        parts = torch.cat([of_all, norms[:, None]], dim=1)
        total = yield Sum(self.share.channel, self._counted(parts))
        accepted = trust_region.accept(total[:, :count], total[:, count])
        return accepted.gather(1, places).flatten()

    def observed(self, moves: Moves, selection: Selection) -> Exchange[tuple[Tensor, Tensor]]:
        count, places = selection.count, selection.places
        assert places is not None
        assert selection.allowed is not None
        changes = moves.changes.view(*places.shape, -1).double()
        numbers = (selection.groups + self.share.first).double()[..., None]
        own = torch.cat([numbers, changes], dim=2) * selection.allowed[..., None]
        whole = own.new_zeros(len(places), count, own.shape[2])
        whole.scatter_add_(1, places[..., None].expand_as(own), own)
        total = yield Sum(self.share.channel, self._counted(whole))
        return total[..., 0].long(), total[..., 1:].to(moves.changes.dtype)

    def counts(self, moves: Moves) -> Exchange[Tensor]:
        own = moves.counts(self.rep.count)
        total = yield Sum(self.share.channel, self._counted(own.double()))
        return total.to(own.dtype)


def places_among(every: Tensor, share: Share, count: int) -> Tensor:
    """Return how many keys of all processes come before each of this one's, ``[weights, n]``.

    Args:
        every: ``[processes, weights, n]`` keys of each, the largest first, filled up behind those
            of fewer groups.
        share: which groups are whose.
        count: how many groups are selected; places from there on do not matter.
    """
    held = [min(count, own) for own in share.counts]
    keys = torch.cat([own[:, :n] for own, n in zip(every.unbind(0), held, strict=True)], dim=1)
    # As in one process: a stable sort, in which the groups of earlier rows come first.
    order = (-keys).sort(dim=1, stable=True).indices
    places = torch.arange(keys.shape[1], device=keys.device).expand_as(order)
    places = torch.empty_like(order).scatter_(1, order, places)
    start = sum(held[: share.rank])
    if share.empty:  # none of the zeros that this process works on may move
        return torch.full_like(places[:, :1], count).expand(-1, every.shape[2])
    return places[:, start : start + held[share.rank]]
