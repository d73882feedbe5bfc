"""A full metric for the weights of a group, in which nearest codes are searched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .contract import GroupMetric

__all__ = ["Block"]


@dataclass(frozen=True, eq=False)
class Block(GroupMetric):
    r"""A metric that couples the weights of a group, the same for all groups it is used with.

    .. math:: \|t - c\|_B^2 = (t - c)\, B\, (t - c)' = \|t L - c L\|^2, \qquad B = L L'

    so targets and codebooks that are mapped by :math:`L` are searched as if there were no metric.
    In a group of several rows, the rows' squared norms are added up.

    Args:
        matrix: ``[n, n]`` symmetric positive semidefinite ``B``, floating, with ``n`` the weights
            in a row of a group.

    Raises:
        ValueError: if the matrix is not square, or clearly not positive semidefinite.
        TypeError: if it is not floating.

    Example:
        >>> import torch
        >>> from pvopt import Block, Query, VectorCodebook
        >>> rep = VectorCodebook(bits=1, group_size=2).fit(torch.tensor([[4.0, 0.0, 0.0, 5.0]]))
        >>> target, groups = torch.tensor([[1.9, 2.4]]), torch.tensor([0])
        >>> for metric in (None, Block(torch.tensor([[4.0, 1.0], [1.0, 1.0]]))):
        ...     query = Query(target=target, rep=rep, groups=groups, metric=metric)
        ...     found = rep.parametrization.candidates(query)
        ...     rep.parametrization.decode_groups(rep, groups, found.codes[:, 0]), found.errors
        (tensor([[4., 0.]]), tensor([[10.1700]]))
        (tensor([[0., 5.]]), tensor([[11.3200]]))

    References:
        AQLM (arXiv 2401.06118), section 3.2: codes in the metric of a layer's inputs.
    """

    matrix: Tensor

    couples = True

    def __post_init__(self) -> None:
        if not self.matrix.is_floating_point():
            raise TypeError(f"matrix must be floating, got {self.matrix.dtype}")
        if self.matrix.dim() != 2 or self.matrix.shape[0] != self.matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {list(self.matrix.shape)}")

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, zero where they are rounding, and eigenvectors, in float64."""
        matrix = self.matrix.double()
        if len(matrix) == 1:  # scalar codes: one such metric per column
            values, vectors = matrix[0], torch.ones_like(matrix)
        else:
            values, vectors = torch.linalg.eigh(matrix)
        largest = values[-1].clamp_min(0)
        noise = 8 * len(values) * torch.finfo(self.matrix.dtype).eps * largest
        if values[0] < -1e-3 * values.abs().max():
            raise ValueError(
                f"matrix must be positive semidefinite, got eigenvalue {float(values[0]):.3g}"
            )
        return torch.where(values > noise, values, 0.0), vectors

    @cached_property
    def _factor(self) -> Tensor:
        """The matrix ``L`` with ``L L' = B``, ``[n, n]``."""
        values, vectors = self._spectrum  # not Cholesky: B may be singular
        return (vectors * values.sqrt()).to(self.matrix.dtype)

    @cached_property
    def inverse(self) -> Tensor:
        """The pseudo-inverse of ``B``, ``[n, n]``."""
        values, vectors = self._spectrum
        inverse = torch.where(values > 0, 1 / values, 0.0)
        return ((vectors * inverse) @ vectors.T).to(self.matrix.dtype)

    def map(self, vectors: Tensor) -> Tensor:
        """Return vectors whose Euclidean distances are the metric's, ``[..., group_size]``.

        Example:
            >>> import torch
            >>> from pvopt import Block
            >>> Block(torch.tensor([[4.0]])).map(torch.tensor([[1.0, 2.0]])).tolist()
            [[2.0, 4.0]]
        """
        return (self._rows(vectors) @ self._factor.to(vectors)).view_as(vectors)

    def diagonal(self, vectors: Tensor) -> Tensor:
        """Return the metric's diagonal for each of some vectors, ``[..., group_size]``."""
        return self.matrix.diagonal().to(vectors).expand_as(self._rows(vectors)).reshape_as(vectors)

    def _rows(self, vectors: Tensor) -> Tensor:
        return vectors.unflatten(-1, (-1, len(self.matrix)))  # [..., rows of a group, n]

    def squared_norms(self, vectors: Tensor) -> Tensor:
        """Return the squared norms of vectors ``[..., group_size]``, ``[...]``.

        Example:
            >>> import torch
            >>> from pvopt import Block
            >>> Block(torch.tensor([[4.0]])).squared_norms(torch.tensor([[1.0, 2.0]]))
            tensor([20.])
        """
        return self.map(vectors).square().sum(-1)
