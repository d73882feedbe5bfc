"""Removing weights of rows one after the other, the others making up for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["PrunedRows"]

# Gains that are computed at least, where most of the time goes to calls anyway.
_LEAST_SOUGHT = 32


class PrunedRows:
    r"""Rows of a layer with some weights removed and the others at their optimum.

    For the error :math:`\frac12 (w - w^0) H (w - w^0)'` of each row, with the removed weights
    :math:`Q` and the lower triangular factor :math:`L L' = (H^{-1})_{QQ}`,

    .. math:: w = w^0 - w^0_Q (H^{-1})_{QQ}^{-1} (H^{-1})_{Q\cdot} = w^0 - y F, \qquad
        F = L^{-1} (H^{-1})_{Q\cdot}, \quad y = w^0_Q L'^{-1}

    All that a removal needs of the inverse of the remaining Hessian is its diagonal,
    :math:`(H^{-1})_{ii} - \sum_q F_{qi}^2`, and one row, so only :math:`F` is kept: for half of
    the weights a quarter of the work of updating the whole inverse, which rows do not share.

    Restoring weights :math:`P` adds :math:`G'G` to the inverse of the remaining Hessian,

    .. math:: G = C^{-1} B F, \qquad B = (L'^{-1})_{P\cdot}, \quad C C' = B B'

    so the restored rows keep :math:`F` and put :math:`G` next to it with the other sign.

    Args:
        weight: ``[n, in]`` the rows :math:`w^0`.
        inverse: ``[in, in]`` inverse of the Hessian that they share.
        capacity: the most weights that may be removed from a row.
    """

    def __init__(self, weight: Tensor, inverse: Tensor, capacity: int) -> None:
        rows, columns = weight.shape
        self.start, self.inverse = weight, inverse
        self.weight = weight.clone()
        self.diagonal = inverse.diagonal().repeat(rows, 1)
        self.error = weight.new_zeros(rows)
        self.removed = torch.zeros_like(weight, dtype=torch.bool)
        self.order = torch.zeros(rows, 0, dtype=torch.int64, device=weight.device)
        self._capacity = capacity
        self._shared: Tensor | None = None  # F of the rows that these were restored from
        self._own = weight.new_empty(rows, capacity, columns)  # G, then F
        self._signs = weight.new_ones(capacity)  # -1 for G
        self._used = 0  # rows of _own
        self._moves = weight.new_empty(rows, capacity)  # y
        self._upper: Tensor | None = None  # L'
        self._stale = False  # the factors are not those of the order

    @property
    def count(self) -> int:
        """How many weights are removed from each row."""
        return self.order.shape[1]

    def saliency(self) -> Tensor:
        r"""Return by how much removing each weight raises the error, infinite for removed ones.

        .. math:: \rho_i = \frac{w_i^2}{2\, [H^{-1}]_{ii}}

        Returns:
            ``[n, in]``, with the inverse taken over the weights that are left.
        """
        return (self.weight.square() / (2 * self.diagonal)).masked_fill_(self.removed, math.inf)

    def gain(self, places: Tensor) -> Tensor:
        r"""Return by how much restoring some removed weights, each alone, lowers the error.

        .. math:: \frac{\lambda_q^2}{2\, [((H^{-1})_{QQ})^{-1}]_{qq}}, \qquad
            \lambda = w^0_Q (H^{-1})_{QQ}^{-1}

        Args:
            places: ``[n, r]`` places in :attr:`order`.

        Returns:
            ``[n, r]``.
        """
        some = self._inverse_rows(places)
        multipliers = torch.bmm(some, self._moves[:, : self.count, None])[..., 0]
        return multipliers.square() / (2 * some.square().sum(2))

    def most_gain(self, count: int) -> Tensor:
        r"""Return the removed weights of the largest gains, ``[n, count]`` places in :attr:`order`.

        They are sought among twice as many of the largest bounds

        .. math:: \frac{\lambda_q^2}{2\, [((H^{-1})_{QQ})^{-1}]_{qq}} \le
            \tfrac12 \lambda_q^2 L_{qq}^2

        since the gains themselves need a column of :math:`L^{-1}` each. On SmolLM2 they are all
        among one and a half times as many.
        """
        upper = self._triangle()
        moves = self._moves[:, : self.count, None]
        multipliers = torch.linalg.solve_triangular(upper, moves, upper=True)[..., 0]
        bound = (multipliers * upper.diagonal(dim1=1, dim2=2)).square()
        size = min(max(2 * count, _LEAST_SOUGHT), self.count)
        places = bound.topk(size, dim=1).indices
        return places.gather(1, self.gain(places).topk(count, dim=1).indices)

    def remove(self, chosen: Tensor) -> None:
        """Remove weights, the same number from every row, all at once.

        Args:
            chosen: ``[n, r]`` distinct columns of weights that are left.
        """
        self._refactor()
        used, step = self._used, chosen.shape[1]
        rows = self.inverse.index_select(0, chosen.flatten()).view(*chosen.shape, -1)  # [n, r, in]
        if self._shared is not None:
            at_chosen = _columns(self._shared, chosen)  # [n, shared, r]
            rows.baddbmm_(at_chosen.transpose(1, 2), self._shared, alpha=-1)
        if used:
            at_chosen = _columns(self._own[:, :used], chosen) * self._signs[:used, None]
            rows.baddbmm_(at_chosen.transpose(1, 2), self._own[:, :used], alpha=-1)
        corner = _columns(rows, chosen)  # [n, r, r]
        upper = _inverted(torch.linalg.cholesky(corner).mT)  # [n, r, r]
        new = torch.bmm(upper.mT, rows)
        moves = torch.bmm(upper.mT, self.weight.gather(1, chosen)[..., None])  # [n, r, 1]
        self._own[:, used : used + step] = new
        if self._shared is None:
            self._moves[:, used : used + step] = moves[..., 0]
        self._used = used + step
        self._upper = None
        self.order = torch.cat([self.order, chosen], dim=1)
        self.removed.scatter_(1, chosen, True)
        self.weight -= torch.bmm(moves.mT, new)[:, 0]
        self.weight.masked_fill_(self.removed, 0.0)
        self.diagonal -= new.square().sum(1)
        self.error += moves.square().sum((1, 2)) / 2

    def restored(self, places: Tensor) -> PrunedRows:
        """Return the rows with some removed weights restored.

        Args:
            places: ``[n, r]`` distinct places in :attr:`order`.
        """
        self._refactor(whole=True)
        restored, columns = places.shape[1], self.weight.shape[1]
        some = self._inverse_rows(places)  # B: [n, r, count]
        corner = _inverted(torch.linalg.cholesky(torch.bmm(some, some.mT)).mT).mT  # C^-1
        some = torch.bmm(corner, some)
        factors = torch.bmm(some, self._own[:, : self.count])  # G: [n, r, in]
        moves = torch.bmm(some, self._moves[:, : self.count, None])  # [n, r, 1]
        keep = torch.ones_like(self.order, dtype=torch.bool).scatter_(1, places, False)
        back = self.order.gather(1, places)

        other = PrunedRows(self.start, self.inverse, 0)
        other._capacity = self._capacity
        other._shared = self._own[:, : self.count]
        other._own = factors.new_empty(len(factors), 2 * restored, columns)
        other._own[:, :restored] = factors
        other._signs = factors.new_ones(2 * restored)
        other._signs[:restored] = -1.0
        other._used = restored
        other.order = self.order[keep].view(len(keep), self.count - restored)
        other.removed = self.removed.scatter(1, back, False)
        other.weight = self.weight + torch.bmm(moves.mT, factors)[:, 0]
        other.weight.masked_fill_(other.removed, 0.0)
        other.diagonal = self.diagonal + factors.square().sum(1)
        other.error = self.error - moves.square().sum((1, 2)) / 2
        return other

    def take_better(self, other: PrunedRows) -> bool:
        """Take over the rows of another that have a smaller error.

        Args:
            other: the same rows, as many weights removed.

        Returns:
            Whether any has.
        """
        better = other.error < self.error
        if not bool(better.any()):
            return False
        for name in ("weight", "diagonal", "error", "removed", "order"):
            getattr(self, name)[better] = getattr(other, name)[better]
        self._stale = True
        return True

    def _refactor(self, whole: bool = False) -> None:
        """Compute the factors from the order of the removals, where they are not of it."""
        if not (self._stale or (whole and self._shared is not None)):
            return
        fresh = PrunedRows(self.start, self.inverse, self._capacity)
        fresh.remove(self.order)
        vars(self).update(vars(fresh))

    def _triangle(self) -> Tensor:
        """Return ``L'``, ``[n, count, count]``."""
        self._refactor(whole=True)
        if self._upper is None:
            self._upper = _columns(self._own[:, : self.count], self.order)
        return self._upper

    def _inverse_rows(self, places: Tensor) -> Tensor:
        """Return rows of ``L'^-1``, ``[n, r, count]``."""
        upper = self._triangle()
        unit = upper.new_zeros(*places.shape, self.count).scatter_(2, places[..., None], 1.0)
        return torch.linalg.solve_triangular(upper, unit, upper=True, left=False)


def _columns(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return the columns ``[n, r]`` of matrices ``[n, k, in]``, ``[n, k, r]``."""
    return rows.gather(2, chosen[:, None].expand(-1, rows.shape[1], -1))


def _inverted(upper: Tensor) -> Tensor:
    """Return the inverses of upper triangular matrices ``[n, size, size]``."""
    eye = torch.eye(upper.shape[1], dtype=upper.dtype, device=upper.device).expand_as(upper)
    return torch.linalg.solve_triangular(upper, eye, upper=True)
