"""What a V step asks of a search: which groups may move, and moves of groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from pvopt.rules.subspace import Subspace

from .moves import Moves

__all__ = ["GroupSearch"]


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
    def moves(self, groups: Tensor, numbers: Tensor) -> Moves:
        """Round groups to their targets.

        Args:
            groups: ``[weights, n]`` distinct group numbers of each weight, the only ones that may
                move.
            numbers: ``[weights * n]``, those among the groups of all weights.
        """

    def squared_changes(self, moves: Moves) -> Tensor:
        """Return the squared norm of each move, ``[n]``."""
        return moves.changes.square().sum(1)
