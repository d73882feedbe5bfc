"""How far a V step may move a weight in all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["TrustRegion"]


@dataclass(frozen=True)
class TrustRegion:
    r"""Bound the change of a weight in one step, accepting the most important groups first.

    .. math:: \|w_\mathrm{new} - w_\mathrm{old}\|_F \le r\, \|w_\mathrm{old}\|_F

    The first group is accepted in any case, so that progress cannot stop.

    Args:
        ratio: :math:`r > 0`; 0.01 is typical.

    Raises:
        ValueError: if ``ratio`` is not positive.

    Example:
        >>> import torch
        >>> TrustRegion(0.5).accept(torch.tensor([1.0, 2.0, 4.0]), torch.tensor(12.0))
        2

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3.
    """

    ratio: float = 0.01

    def __post_init__(self) -> None:
        if not self.ratio > 0:
            raise ValueError(f"ratio must be positive, got {self.ratio}")

    def accept(self, squared_changes: Tensor, squared_norm: Tensor) -> int:
        """Return how many of the ordered changes fit into the region.

        Args:
            squared_changes: ``[n]`` squared norms of the groups' changes, most important first.
            squared_norm: scalar, squared norm of the weight before the step.

        Returns:
            Number of leading changes to accept, at least 1 if there is any.
        """
        total = squared_changes.double().cumsum(0)
        fits = int((total <= self.ratio**2 * squared_norm.double()).sum())
        return min(max(fits, 1), len(squared_changes))
