"""The torch optimizers that a tuning run may lift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["BASES", "Base"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """A torch optimizer, and what a run has to know of it.

    Args:
        make: called with parameter groups and ``weight_decay``.
        takes_betas: whether groups may set the decay rates of its moments, as ``betas``.
        relative: whether its learning rates are in units of each weight's size anyway.
        keeps_squares: whether it keeps a mean of squared gradients.
    """

    make: Callable[..., Optimizer]
    takes_betas: bool = False
    relative: bool = False
    keeps_squares: bool = True

    def group_settings(self, betas: tuple[float, float]) -> dict[str, Any]:
        """Return the settings of a parameter group whose moments decay at these rates."""
        return {"betas": betas} if self.takes_betas else {}


#: Base optimizers by the names that ``--base`` takes.
BASES: dict[str, Base] = {
    "adafactor": Base(make=torch.optim.Adafactor, relative=True),
    "adam": Base(make=partial(torch.optim.Adam, fused=True), takes_betas=True),
    "adamw": Base(make=partial(torch.optim.AdamW, fused=True), takes_betas=True),
    "rmsprop": Base(make=partial(torch.optim.RMSprop, alpha=0.95)),
    "sgd": Base(make=partial(torch.optim.SGD, fused=True), keeps_squares=False),
}
