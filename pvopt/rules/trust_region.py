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
        >>> from pvopt import TrustRegion
        >>> TrustRegion(0.5).accept(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([12.0]))
        tensor([[ True,  True, False]])

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3.
    """

    ratio: float = 0.01

    def __post_init__(self) -> None:
        if not self.ratio > 0:
            raise ValueError(f"ratio must be positive, got {self.ratio}")

    def accept(self, squared_changes: Tensor, squared_norms: Tensor) -> Tensor:
        """Tell which of the ordered changes fit into the region.

        Args:
            squared_changes: ``[weights, n]`` squared norms of the groups' changes, the most
                important first; 0 for groups that do not move.
            squared_norms: ``[weights]``, of the weights before the step.

        Returns:
            ``[weights, n]`` bool: all up to some place, with at least the first that moves.
        """
        total = squared_changes.double().cumsum(1)
        fits = total <= self.ratio**2 * squared_norms.double()[:, None]
        return fits | ((squared_changes > 0).cumsum(1) <= 1)
