"""Changes of codes: found by a search, not yet made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.metrics.block import BlockMetric
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Rounding

__all__ = ["Moves", "round_groups"]


@dataclass(frozen=True, eq=False)
class Moves:
    """Groups and the codes they are to take.

    Args:
        groups: ``[n]`` distinct group numbers, int64.
        goals: ``[n, group_size]`` what each group was rounded from.
        codes: ``[n, codes_per_group]`` int64.
        decoded: ``[n, group_size]`` what the groups decode to then.
    """

    groups: Tensor
    goals: Tensor
    codes: Tensor
    decoded: Tensor

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, index: Tensor | slice) -> Moves:
        """Return some of the moves, by their places."""
        return Moves(self.groups[index], self.goals[index], self.codes[index], self.decoded[index])

    @staticmethod
    def concatenate(parts: Sequence[Moves]) -> Moves:
        """Return the moves of several parts, at least one, in their order."""
        names = ("groups", "goals", "codes", "decoded")
        return Moves(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def make(self, rep: Representation, decoded: Tensor) -> None:
        """Make the moves, in place.

        Args:
            rep: takes the codes.
            decoded: ``[num_groups, group_size]``, the groups of ``rep``, kept up to date.
        """
        rep.parametrization.move_(self.goals, rep, self.groups, self.codes)
        decoded.index_copy_(0, self.groups, self.decoded)


def round_groups(
    rep: Representation,
    groups: Tensor,
    goals: Tensor,
    *,
    rounding: Rounding,
    metric: Tensor | BlockMetric | None = None,
    generator: torch.Generator | None = None,
) -> Moves:
    """Round groups to their goals; groups that keep their code are left out.

    Args:
        rep: current codes and values.
        groups: ``[n]`` group numbers.
        goals: ``[n, group_size]``.
        rounding: which candidate to take.
        metric: ``[n, group_size]``, one matrix for all, or None.
        generator: source of random draws.

    Returns:
        The moves, in the order of the groups.
    """
    candidates = rounding.propose(goals, rep, groups, metric=metric, generator=generator)
    current = rep.flat_codes.index_select(0, groups).long()  # [n, codes_per_group]
    codes = rounding.choose(candidates, current, generator)
    moved = (codes != current).any(1).nonzero()[:, 0]
    groups, goals, codes = (tensor.index_select(0, moved) for tensor in (groups, goals, codes))
    decoded = rep.parametrization.decode_moved(goals, rep, groups, codes)
    return Moves(groups, goals, codes, decoded)
