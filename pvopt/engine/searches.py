"""What a V step asks of a search: moves of groups, and what each would be worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .moves import Moves, round_groups
from pvopt.parametrizations.candidates import squared_norms
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Rounding

__all__ = ["CodeSearch", "SeparableSearch", "unchanged"]


class CodeSearch(ABC):
    r"""Search of new codes for a weight, the values fixed, in some metric.

    Everything is in terms of the bound :math:`\tfrac12\|t - w\|_D^2` that a V step minimises.
    """

    #: Whether the best code of a group depends on the codes of others.
    coupled: bool

    @abstractmethod
    def moves(
        self, groups: Tensor, *, rounding: Rounding, generator: torch.Generator | None = None
    ) -> Moves:
        """Round groups; those that keep their code are left out.

        Args:
            groups: ``[n]`` distinct group numbers, the only ones that may move.
            rounding: which candidate to take.
            generator: source of random draws.

        Returns:
            The moves in the order of the groups.
        """

    @abstractmethod
    def bounds(self) -> Tensor:
        """Return what each group could lower the bound by if it may take any weights.

        Returns:
            ``[num_groups]``, non-negative.
        """

    @abstractmethod
    def decreases(self, groups: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return what groups lower the bound by when each alone takes its best code.

        Args:
            groups: ``[n]`` distinct group numbers.
            generator: source of the random order of beam searches; left as it was, so that the
                same groups have the same decreases in any batch.

        Returns:
            ``[n]``, non-negative; 0 for a group whose present code is the best.
        """


class SeparableSearch(CodeSearch):
    r"""Search in a diagonal metric: every group has its own part of the bound.

    .. math:: \tfrac12 \sum_g \sum_i d_{gi} (t_{gi} - w_{gi})^2

    Args:
        rep: codes and values; not changed.
        goals: ``[num_groups, group_size]``, the target.
        decoded: ``[num_groups, group_size]``, the groups of ``rep``.
        metric: ``[num_groups, group_size]`` non-negative ``d``, or None for 1.
    """

    coupled = False

    def __init__(
        self, rep: Representation, goals: Tensor, decoded: Tensor, metric: Tensor | None
    ) -> None:
        self.rep = rep
        self.goals = goals
        self.decoded = decoded
        self.metric = metric

    def _weights(self, groups: Tensor) -> Tensor | None:
        return None if self.metric is None else self.metric.index_select(0, groups)

    def moves(
        self, groups: Tensor, *, rounding: Rounding, generator: torch.Generator | None = None
    ) -> Moves:
        """Round every group to its goal."""
        goals = self.goals.index_select(0, groups)
        metric = self._weights(groups)
        return round_groups(
            self.rep, groups, goals, rounding=rounding, metric=metric, generator=generator
        )

    def bounds(self) -> Tensor:
        """Return half the squared distances to the goals."""
        return 0.5 * squared_norms(self.goals - self.decoded, self.metric)

    def decreases(self, groups: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Search groups; return half of what their squared distances lose."""
        goals, metric = self.goals.index_select(0, groups), self._weights(groups)
        present = squared_norms(goals - self.decoded.index_select(0, groups), metric)
        with unchanged(generator):
            found = self.rep.parametrization.candidates(
                goals, self.rep, groups, metric=metric, generator=generator
            )
        return (0.5 * (present - found.errors[:, 0])).clamp_min_(0)


@contextmanager
def unchanged(generator: torch.Generator | None) -> Iterator[None]:
    """Put a generator back, afterwards, to where it was."""
    state = None if generator is None else generator.get_state()
    yield
    if generator is not None and state is not None:
        generator.set_state(state)
