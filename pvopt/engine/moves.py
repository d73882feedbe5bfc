"""Changes of codes: found by a search, not yet made."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pvopt.parametrizations.query import Query
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Rounding

__all__ = ["Moves", "round_groups"]


@dataclass(frozen=True, eq=False)
class Moves:
    """Groups and the codes they are to have; those that stay have their present ones.

    Args:
        groups: ``[n]`` distinct group numbers, int64.
        codes: ``[n, codes_per_group]`` int64.
        decoded: ``[n, group_size]`` what the groups decode to with these codes.
        moved: ``[n]`` bool, whether the code is another one.
        codes_before: ``[n, codes_per_group]``.
        decoded_before: ``[n, group_size]``.
    """

    groups: Tensor
    codes: Tensor
    decoded: Tensor
    moved: Tensor
    codes_before: Tensor
    decoded_before: Tensor

    @property
    def changes(self) -> Tensor:
        """Differences of the groups, ``[n, group_size]``; 0 for those that stay."""
        return self.decoded - self.decoded_before

    def counts(self, matrices: int) -> Tensor:
        """Return how many groups of each of some matrices move, ``[matrices]`` int64."""
        return self.moved.view(matrices, -1).sum(1)

    def only(self, kept: Tensor) -> Moves:
        """Return the moves with all but some groups staying.

        Args:
            kept: ``[n]`` bool, the groups that may move.
        """
        moved = self.moved & kept
        return replace(
            self,
            codes=torch.where(moved[:, None], self.codes, self.codes_before),
            decoded=torch.where(moved[:, None], self.decoded, self.decoded_before),
            moved=moved,
        )

    def make_(self, rep: Representation) -> None:
        """Make the moves, in place."""
        rep.parametrization.move_(rep, self.groups, self.codes, self.decoded)


def round_groups(query: Query, rounding: Rounding) -> Moves:
    """Round groups to their targets.

    Args:
        query: groups, targets and metric.
        rounding: which candidate to take.

    Returns:
        The moves, in the order of the groups.
    """
    groups = query.groups
    assert groups is not None
    # Others ask for several candidates: their query is another one, to which this is known then.
    before = None if rounding.takes_first else query.present
    candidates = rounding.propose(query)
    before, current = query.present if before is None else before, query.current()
    codes = rounding.choose(candidates, current, query.draws)
    moved = (codes != current).any(1)
    decoded = candidates.decoded if rounding.takes_first else None
    if decoded is None:
        decoded = query.rep.parametrization.decode_moved(query, codes)
        decoded = torch.where(moved[:, None], decoded, before)
    return Moves(groups, codes, decoded, moved, current, before)
