"""What a search for codes is asked, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.metrics.contract import GroupMetric

from .options import SearchOptions
from .representation import Representation

__all__ = ["Candidates", "Query"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    r"""A search for the codes of some groups, values fixed.

    .. math:: z_g = \arg\min_z \|t_g - \mathrm{decode}(z, v)_g\|^2

    Args:
        target: ``[n, group_size]``, the weights to come close to; searched in the values' dtype.
        rep: current codes and values, of one weight or of several one below the other; there are
            then equally many groups of each, weight after weight.
        groups: ``[n]`` int64 distinct group numbers of the targets; None stands for all in order.
        count: how many distinct candidates.
        metric: between the weights of a group, or None for the Euclidean.
        options: how hard to try.
        draws: source of random draws; None seeds a fresh one.
        decoded: ``[n, group_size]``, what the groups decode to now; None decodes them.

    Raises:
        ValueError: if ``count`` is not positive.

    Example:
        >>> import torch
        >>> from pvopt import Query, SharedValues
        >>> rep = SharedValues(num_values=3).fit(torch.tensor([[0.0, 1.0, 4.0]]))
        >>> query = Query(target=torch.tensor([[2.75]]), rep=rep, groups=torch.tensor([0]))
        >>> rep.parametrization.search(query).flatten().tolist()
        [2]
    """

    target: Tensor
    rep: Representation
    groups: Tensor | None = None
    count: int = 1
    metric: GroupMetric | None = None
    options: SearchOptions = field(default_factory=SearchOptions)
    draws: Draws | None = None
    decoded: Tensor | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        object.__setattr__(self, "target", self.target.to(self.rep.dtype))

    @property
    def weights(self) -> Tensor | None:
        """The weights of squared errors ``[n, group_size]``: the metric's diagonal, or None."""
        return None if self.metric is None else self.metric.diagonal(self.target)

    def current(self) -> Tensor:
        """Return the present codes of the groups, ``[n, codes_per_group]`` int64."""
        return self._current

    def remember(self, current: Tensor, present: Tensor) -> None:
        """Keep what a search has found out on its way.

        Args:
            current: of :meth:`current`.
            present: of :attr:`present`.
        """
        self.__dict__.update(_current=current, present=present)

    @cached_property
    def _current(self) -> Tensor:
        return self.rep.group_codes(self.groups).long()

    @cached_property
    def present(self) -> Tensor:
        """What the groups decode to now, ``[n, group_size]``."""
        if self.decoded is not None:
            return self.decoded
        return self.rep.parametrization.decode_groups(self.rep, self.groups)

    def permutation(self, count: int) -> list[int]:
        """Return a random order of ``count`` things."""
        return Draws.of(self.draws, torch.device("cpu")).permutation(count)

    def but(self, **changes: Any) -> Query:
        """Return the query with other settings."""
        if changes == {"count": self.count}:
            return self  # with what is known already
        if "rep" in changes or "groups" in changes:
            changes.setdefault("decoded", None)
        else:
            changes.setdefault("decoded", self.__dict__.get("present", self.decoded))
        return replace(self, **changes)


@dataclass(frozen=True)
class Candidates:
    """The best codes found for each of ``n`` groups, best first.

    Args:
        codes: ``[n, k, codes_per_group]``, int64.
        errors: ``[n, k]``, squared distance (in the metric, if any) of the decoded candidate to
            the group's target; ``inf`` marks a slot for which no further code exists.
        decoded: ``[n, group_size]`` what the first candidate decodes to, where that is known.

    Example:
        >>> import torch
        >>> from pvopt import Query, SharedValues
        >>> rep = SharedValues(num_values=3).fit(torch.tensor([[0.0, 1.0, 4.0]]))
        >>> target, groups = torch.tensor([[2.25]]), torch.tensor([0])
        >>> query = Query(target=target, rep=rep, groups=groups, count=2)
        >>> found = rep.parametrization.candidates(query)
        >>> found.codes.flatten().tolist(), found.errors.flatten().tolist()
        ([1, 2], [1.5625, 3.0625])
    """

    codes: Tensor
    errors: Tensor
    decoded: Tensor | None = None
