"""Tell, once, that no code has moved, and why."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor

from .group_settings import GroupSettings

__all__ = ["StallWatch"]

logger = logging.getLogger(__name__)

# V steps until counts are looked at.
_STEPS = 100


class StallWatch:
    """Look, after the first hundred V steps, whether any of them moved a code.

    Counts stay on the device until then, so that no step but that one waits for them.
    """

    def __init__(self) -> None:
        self._counts: list[Tensor] = []
        self._left = _STEPS

    def observe(self, counts: Iterable[Tensor], settings: Iterable[GroupSettings]) -> None:
        """Note one step, and warn if it is the last of so many in which nothing moved.

        Args:
            counts: numbers of groups that moved; empty if there was no V step.
            settings: of the parameter groups.
        """
        counts = list(counts)
        if not counts or self._left == 0:
            return
        self._counts += counts
        self._left -= 1
        if self._left == 0:
            moved = any(bool(found.any()) for found in self._counts)
            self._counts = []
            if not moved:
                reasons = sorted({_reason(s) for s in settings if not s.freeze_codes})
                logger.warning(
                    "no code has moved in %d steps, only values have: %s",
                    _STEPS,
                    "; ".join(reasons),
                )


def _reason(settings: GroupSettings) -> str:
    if settings.keeps_latent:
        return (
            "no latent weight has come nearer to another code than to its own; the learning rate "
            "may be too low, or latent_decay too high"
        )
    if settings.measures_steps:
        return "steps on codes have grown in vain; gradients may be 0"
    return (
        "one update alone is too short to reach another code; keep a latent weight "
        "(latent_decay=0), or let a subspace rule with a share of the groups (Greedy) measure how "
        "long steps on codes may be (code_lr_ratio=None)"
    )
