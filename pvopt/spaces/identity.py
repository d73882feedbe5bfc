"""The weight's own space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pvopt.metrics.contract import Metric

from .contract import SPACES, Space

__all__ = ["Identity", "identity"]


@SPACES.register()
@dataclass(frozen=True)
class Identity(Space):
    """The weight's own space: groups are groups of weights.

    Example:
        >>> import torch
        >>> from pvopt import Identity
        >>> Identity().enter(torch.eye(2), {}).equal(torch.eye(2))
        True
    """

    trivial = True
    on_activations = True

    @property
    def name(self) -> str:
        return ""

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return weight

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        return inner

    def enter_inputs(self, x: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return x

    def leave_outputs(
        self, y: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        return y

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        return metric


_IDENTITY = Identity()


def identity() -> Identity:
    """Return the weight's own space, always the same object: torch.compile makes none."""
    return _IDENTITY
