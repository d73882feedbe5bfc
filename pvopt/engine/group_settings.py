"""The options of PVOptimizer that may differ between parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pvopt.rules.subspace import Subspace

__all__ = ["GroupSettings"]


@dataclass(frozen=True)
class GroupSettings:
    """Options of one parameter group; primitives only, so that any loader reads them.

    Args:
        fraction: share of groups that may move in (0, 1], for rules that have one, else None.
        trust_ratio: bound on the relative change of a weight in one V step, or None.
        latent_decay: in [0, 1].
        code_lr_ratio: how many times as long as on dense weights steps on codes are, without a
            latent weight; None measures it, in rules that select a share of the groups.
        values_lr_ratio: learning rate of values over the group's, not negative.
        freeze_codes: whether codes stay.
        freeze_values: whether values stay.
        seed: of the random draws.

    Raises:
        ValueError: for an option out of range.
        TypeError: for a flag that is not a bool or a seed that is not an int.

    Example:
        >>> from pvopt.engine.group_settings import GroupSettings
        >>> GroupSettings(latent_decay=2.0)
        Traceback (most recent call last):
        ...
        ValueError: latent_decay must be in [0, 1], got 2.0
    """

    fraction: float | None = None
    trust_ratio: float | None = None
    latent_decay: float = 0.0
    code_lr_ratio: float | None = None
    values_lr_ratio: float = 1.0
    freeze_codes: bool = False
    freeze_values: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1] or None, got {self.fraction}")
        if self.trust_ratio is not None and not self.trust_ratio > 0:
            raise ValueError(f"trust_ratio must be positive or None, got {self.trust_ratio}")
        if not 0 <= self.latent_decay <= 1:
            raise ValueError(f"latent_decay must be in [0, 1], got {self.latent_decay}")
        if self.code_lr_ratio is not None and not 0 < self.code_lr_ratio < math.inf:
            raise ValueError(f"code_lr_ratio must be positive or None, got {self.code_lr_ratio}")
        if not self.values_lr_ratio >= 0:
            raise ValueError(f"values_lr_ratio must not be negative, got {self.values_lr_ratio}")
        for name in ("freeze_codes", "freeze_values"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be an int, got {self.seed!r}")

    @property
    def keeps_latent(self) -> bool:
        """Whether updates collect in a latent weight."""
        return self.latent_decay < 1 and not self.freeze_codes

    @property
    def measures_steps(self) -> bool:
        """Whether the length of steps on codes is measured."""
        plain = self.code_lr_ratio is None and self.fraction is not None
        return plain and self.latent_decay == 1 and not self.freeze_codes

    @classmethod
    def of(
        cls, group: Mapping[str, Any], defaults: GroupSettings, subspace: Subspace
    ) -> GroupSettings:
        """Return a group's options, with defaults where the group names none."""
        options = asdict(defaults)
        options.update({f.name: group[f.name] for f in fields(cls) if f.name in group})
        if options["fraction"] is not None and not hasattr(subspace, "fraction"):
            raise ValueError(
                f"fraction must be None with {type(subspace).__name__}, got {options['fraction']}"
            )
        return cls(**options)
