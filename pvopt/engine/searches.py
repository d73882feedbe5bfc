"""What a V step asks of a search: which groups may move, and moves of groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pvopt.rules.subspace import Subspace
from pvopt.rules.trust_region import TrustRegion

from .exchange import Exchange
from .moves import Moves

__all__ = ["GroupSearch", "Selection"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Groups that may move.

    Args:
        groups: ``[weights, n]`` group numbers of each weight.
        asked: ``[weights, n]``, the norms of the changes that they ask for; None where nobody
            needs them.
        allowed: ``[weights, n]`` bool, which of them were really selected; the others fill up.
            None: all were.
        places: ``[weights, n]``, the place of each among the groups of all processes that were
            selected; None where there is no order.
        count: number of groups of each weight that all processes have selected.
    """

    groups: Tensor
    asked: Tensor | None = None
    allowed: Tensor | None = None
    places: Tensor | None = None
    count: int = 0


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

    def selection(
        self, subspace: Subspace, *, ordered: bool, gradients: Sequence[Tensor] | None
    ) -> Exchange[Selection]:
        """Let a rule select groups of all processes; the arguments are those of :meth:`select`."""
        yield from ()
        return Selection(*self.select(subspace, ordered=ordered, gradients=gradients))

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
    def moves(self, groups: Tensor, numbers: Tensor) -> Moves:
        """Round groups to their targets.

        Args:
            groups: ``[weights, n]`` distinct group numbers of each weight, the only ones that may
                move.
            numbers: ``[weights * n]``, those among the groups of all weights.
        """

    def accepted(
        self, trust_region: TrustRegion, moves: Moves, selection: Selection
    ) -> Exchange[Tensor]:
        """Tell which moves fit into the trust region, ``[n]`` bool."""
        yield from ()
        changes = self.squared_changes(moves).view(len(selection.groups), -1)
        return trust_region.accept(changes, self.squared_norms).flatten()

    def counts(self, moves: Moves) -> Exchange[Tensor]:
        """Return how many groups of each weight move, in all processes, ``[weights]`` int64."""
        yield from ()
        return moves.counts(self.weights)

    def observed(self, moves: Moves, selection: Selection) -> Exchange[tuple[Tensor, Tensor]]:
        """Return the groups that all processes have selected, and how they change.

        Returns:
            Numbers among the groups of all rows ``[weights, n]``, and ``[weights, n, group_size]``.
        """
        yield from ()
        groups = selection.groups
        return groups, moves.changes.view(*groups.shape, -1)

    @property
    @abstractmethod
    def weights(self) -> int:
        """Number of weights."""

    def squared_changes(self, moves: Moves) -> Tensor:
        """Return the squared norm of each move, ``[n]``."""
        return moves.changes.square().sum(1)
