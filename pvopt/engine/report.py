"""What an optimizer step did to the codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["StepReport"]


@dataclass(frozen=True)
class StepReport:
    """What the last step did to the codes.

    Args:
        changed: number of groups whose code changed, by parameter name.
        groups: number of all groups of the weights that took a V step, by parameter name.

    Example:
        >>> report = StepReport(changed={"a": 1, "b": 2}, groups={"a": 50, "b": 50})
        >>> report.changed_groups, report.changed_fraction
        (3, 0.03)
    """

    changed: Mapping[str, int]
    groups: Mapping[str, int]

    @property
    def changed_groups(self) -> int:
        """Number of groups whose code changed, over all weights."""
        return sum(self.changed.values())

    @property
    def changed_fraction(self) -> float:
        """Share of groups whose code changed (0 if no weight took a V step)."""
        return self.changed_groups / max(1, sum(self.groups.values()))
