"""Dense weights that latent weights begin at, instead of at the codes that were fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation

__all__ = ["DenseStart"]

# A processor rounds the sum of the squares otherwise than another; another code changes it by more.
_SLACK = 1e-4


@dataclass(eq=False)
class DenseStart:
    r"""The weight that codes and values were fitted to, and how far from it they are.

    Whoever changes codes or values changes their error :math:`\|w - \hat w\|^2`, by which
    it is noticed that a weight is no longer theirs.

    Args:
        weight: ``[*shape]``, floating; None once it is a latent weight of an optimizer.
        error: the squared error.

    Example:
        >>> import torch
        >>> from pvopt import SharedValues
        >>> from pvopt.engine.dense_start import DenseStart
        >>> weight = torch.tensor([[0.0, 1.0, 0.9]])
        >>> rep = SharedValues(num_values=2).fit(weight)
        >>> start = DenseStart.of(weight, rep)
        >>> start.is_of(rep, weight)
        True
        >>> _ = rep.values["values"].mul_(2)
        >>> start.is_of(rep, weight)
        False
    """

    weight: Tensor | None
    error: float

    @classmethod
    def of(cls, weight: Tensor, rep: Representation) -> DenseStart:
        """Return the start at a weight, of codes and values that were fitted to it."""
        return cls(weight, _error(weight, rep))

    def is_of(self, rep: Representation, weight: Tensor) -> bool:
        """Tell whether codes and values are as near to the weight as at the time."""
        return abs(_error(weight, rep) - self.error) <= _SLACK * self.error

    @torch.no_grad()
    def move_(self, rep: Representation, taken: Callable[[Tensor], Tensor]) -> None:
        """Keep the weight of some rows alone, if it is that of codes and values.

        Args:
            rep: of these rows.
            taken: returns these rows of a weight.
        """
        if self.weight is not None:
            rows = taken(self.weight).to(rep.device, copy=True)
            self.weight, self.error = rows, _error(rows, rep)

    def take(self, rep: Representation) -> Tensor | None:
        """Return the weight in the precision of the values, and let go of it.

        None if it has gone already, or is not that of codes and values any more.
        """
        weight, self.weight = self.weight, None
        if weight is None:
            return None
        weight = weight.to(device=rep.device, dtype=rep.dtype)
        return weight if self.is_of(rep, weight) else None

    def forget(self) -> None:
        """Let go of the weight, and let no latent weight stay at it."""
        self.weight, self.error = None, torch.nan


@torch.no_grad()
def _error(weight: Tensor, rep: Representation) -> float:
    return float((rep.decode() - weight.to(rep.device)).square().sum(dtype=torch.float64))
