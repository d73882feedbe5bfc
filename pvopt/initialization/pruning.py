"""Removing weights of rows one after the other, the others making up for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["PrunedRows"]


class PrunedRows:
    r"""Rows of a layer with some weights removed and the others at their optimum.

    For the error :math:`\frac12 (w - w^0) H (w - w^0)'` of each row, with the removed weights
    :math:`Q` and the lower triangular factor :math:`L L' = (H^{-1})_{QQ}`,

    .. math:: w = w^0 - w^0_Q (H^{-1})_{QQ}^{-1} (H^{-1})_{Q\cdot} = w^0 - y F, \qquad
        F = L^{-1} (H^{-1})_{Q\cdot}, \quad y = w^0_Q L'^{-1}

    All that a removal needs of the inverse of the remaining Hessian is its diagonal,
    :math:`(H^{-1})_{ii} - \sum_q F_{qi}^2`, and one row, so only :math:`F` is kept: for half of
    the weights a quarter of the work of updating the whole inverse, which rows do not share.

    Args:
        weight: ``[n, in]`` the rows :math:`w^0`.
        inverse: ``[in, in]`` inverse of the Hessian that they share.
        capacity: the most weights that may be removed from a row.
    """

    def __init__(self, weight: Tensor, inverse: Tensor, capacity: int) -> None:
        rows, columns = weight.shape
        self.start, self.inverse = weight, inverse
        self.count = 0
        self.weight = weight.clone()
        self.diagonal = inverse.diagonal().repeat(rows, 1)
        self.error = weight.new_zeros(rows)
        self._order = torch.zeros(rows, capacity, dtype=torch.int64, device=weight.device)
        self._factors = weight.new_empty(rows, capacity, columns)  # F
        self._moves = weight.new_empty(rows, capacity)  # y

    @property
    def order(self) -> Tensor:
        """The removed weights in the order of their removal, ``[n, count]``."""
        return self._order[:, : self.count]

    @property
    def removed(self) -> Tensor:
        """Mask of the removed weights, ``[n, in]``."""
        mask = torch.zeros_like(self.weight, dtype=torch.bool)
        return mask.scatter_(1, self.order, True)

    def saliency(self) -> Tensor:
        r"""Return by how much removing each weight raises the error, infinite for removed ones.

        .. math:: \rho_i = \frac{w_i^2}{2\, [H^{-1}]_{ii}}

        Returns:
            ``[n, in]``, with the inverse taken over the weights that are left.
        """
        return (self.weight.square() / (2 * self.diagonal)).masked_fill_(self.removed, math.inf)

    def gain(self) -> Tensor:
        r"""Return by how much restoring each removed weight lowers the error.

        .. math:: \frac{\lambda_q^2}{2\, [((H^{-1})_{QQ})^{-1}]_{qq}}, \qquad
            \lambda = w^0_Q (H^{-1})_{QQ}^{-1}

        Returns:
            ``[n, count]``, in the order of the removal.
        """
        factors = self._factors[:, : self.count]
        index = self.order[:, None].expand(-1, self.count, -1)
        upper = factors.gather(2, index)  # F at the removed columns: L', [n, count, count]
        eye = torch.eye(self.count, dtype=upper.dtype, device=upper.device).expand_as(upper)
        inverse = torch.linalg.solve_triangular(upper, eye, upper=True)  # L'^-1
        multipliers = torch.bmm(inverse, self._moves[:, : self.count, None])[..., 0]
        return multipliers.square() / (2 * inverse.square().sum(2))

    def remove(self, chosen: Tensor) -> None:
        """Remove weights, the same number from every row, all at once.

        Args:
            chosen: ``[n, r]`` distinct columns of weights that are left.
        """
        done, step = self.count, chosen.shape[1]
        rows = self.inverse[chosen]  # [n, r, in]
        if done:
            factors = self._factors[:, :done]
            index = chosen[:, None].expand(-1, done, -1)
            at_chosen = factors.gather(2, index)  # [n, done, r]
            rows.baddbmm_(at_chosen.transpose(1, 2), factors, alpha=-1)
        corner = rows.gather(2, chosen[:, None].expand(-1, step, -1))  # [n, r, r]
        lower = torch.linalg.cholesky(corner)
        new = torch.linalg.solve_triangular(lower, rows, upper=False)
        values = self.weight.gather(1, chosen)[..., None]
        moves = torch.linalg.solve_triangular(lower, values, upper=False)  # [n, r, 1]
        self._factors[:, done : done + step] = new
        self._moves[:, done : done + step] = moves[..., 0]
        self._order[:, done : done + step] = chosen
        self.count = done + step
        self.weight -= torch.bmm(new.transpose(1, 2), moves)[..., 0]
        self.weight.scatter_(1, self.order, 0.0)
        self.diagonal -= new.square().sum(1)
        self.error += moves.square().sum((1, 2)) / 2

    def restored(self, places: Tensor) -> PrunedRows:
        """Return the rows with some removed weights restored.

        Args:
            places: ``[n, r]`` distinct places in :attr:`order`.
        """
        keep = torch.ones_like(self.order, dtype=torch.bool).scatter_(1, places, False)
        other = PrunedRows(self.start, self.inverse, self._order.shape[1])
        rest = self.count - places.shape[1]
        if rest:
            other.remove(self.order[keep].view(len(keep), rest))
        return other

    def take_better(self, other: PrunedRows) -> bool:
        """Take over the rows of another that have a smaller error.

        Args:
            other: the same rows, as many weights removed.

        Returns:
            Whether any has.
        """
        better = other.error < self.error
        for name in ("weight", "diagonal", "error", "_order", "_factors", "_moves"):
            getattr(self, name)[better] = getattr(other, name)[better]
        return bool(better.any())
