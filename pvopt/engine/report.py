"""What an optimizer step did to the codes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

__all__ = ["StepReport"]


class StepReport:
    """What the last step did to the codes.

    Counts are read from the device when they are asked for: a step does not wait for them.

    Args:
        changed: numbers of groups whose code changed, ``[weights]``, by the weights' names.
        groups: number of all groups of the weights that took a V step, by parameter name.

    Example:
        >>> import torch
        >>> from pvopt import StepReport
        >>> report = StepReport({("a", "b"): torch.tensor([1, 2])}, groups={"a": 50, "b": 50})
        >>> report.changed, report.changed_groups, report.changed_fraction
        ({'a': 1, 'b': 2}, 3, 0.03)
    """

    def __init__(
        self, changed: Mapping[tuple[str, ...], Tensor], groups: Mapping[str, int]
    ) -> None:
        self._changed = changed
        self.groups = groups

    @cached_property
    def changed(self) -> dict[str, int]:
        """Number of groups whose code changed, by parameter name."""
        found = [
            (name, count)
            for names, counts in self._changed.items()
            for name, count in zip(names, counts.tolist(), strict=True)
        ]
        return dict(found)

    @property
    def changed_groups(self) -> int:
        """Number of groups whose code changed, over all weights."""
        return sum(self.changed.values())

    @property
    def changed_fraction(self) -> float:
        """Share of groups whose code changed (0 if no weight took a V step)."""
        return self.changed_groups / max(1, sum(self.groups.values()))

    def __repr__(self) -> str:
        return f"StepReport(changed={self.changed}, groups={self.groups})"
