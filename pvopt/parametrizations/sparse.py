"""Sparse weights with free nonzeros: a share of each row or of the tensor, or N of every M."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from .layout import GroupLayout, check_divides, matrix_shape
from .sparse_support import SparseSupport
from .validation import check_integer

__all__ = ["Sparse", "SparseNM"]


@dataclass(frozen=True)
class Sparse(SparseSupport):
    r"""A share of the entries of every row, or of the whole weight, is not zero.

    .. math:: \|w_g\|_0 = k, \qquad k = \mathrm{round}(\text{density} \cdot |g|) \ge 1

    A group is a row or the whole weight; its codes are the mask, a bit per weight. Values:
    ``values``, the nonzeros in order, ``[rows, k]`` or ``[k]``. With 16 bits for a nonzero that is
    1 + 16 density bits per weight.

    A V step moves whole groups: with ``per="tensor"`` there is one, which a subspace rule always
    selects and a trust region always accepts.

    Args:
        density: share of nonzeros, in (0, 1].
        per: ``"row"`` or ``"tensor"``, what the share is taken of.

    Raises:
        TypeError: if ``density`` is no number.
        ValueError: for a density out of range or another ``per``.

    Example:
        >>> rep = Sparse(0.5).fit(torch.tensor([[1.0, -2.0, 0.1, 0.0], [3.0, 4.0, 5.0, 6.0]]))
        >>> rep.decode()
        tensor([[ 1., -2.,  0.,  0.],
                [ 0.,  0.,  5.,  6.]])

    References:
        Blumensath & Davies, "Iterative hard thresholding for compressed sensing" (2009);
        Wu et al., "The Iterative Optimal Brain Surgeon" (NeurIPS 2024).
    """

    density: float
    per: Literal["row", "tensor"] = "row"

    def __post_init__(self) -> None:
        if isinstance(self.density, bool) or not isinstance(self.density, int | float):
            raise TypeError(f"density must be a float, got {self.density!r}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        if self.per not in ("row", "tensor"):
            raise ValueError(f"per must be 'row' or 'tensor', got {self.per!r}")

    @property
    def code_bits(self) -> int:
        """One bit of the mask."""
        return 1

    @property
    def codes_per_group(self) -> int:
        """No constant, as groups grow with the weight's rows; see :meth:`code_shape`."""
        raise TypeError("the codes per group of Sparse depend on the shape: use code_shape(shape)")

    def code_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """One row of groups, a bit for each weight."""
        layout = self.layout(shape)
        return layout.rows, layout.cols, layout.group_size

    def check_codes(self, codes: Tensor, shape: tuple[int, ...]) -> None:
        """Raise unless every mask has its number of ones."""
        super().check_codes(codes, shape)
        ones, count = codes.sum(-1), self._count(codes.shape[-1])
        if not bool((ones == count).all()):
            raise ValueError(
                f"codes must keep {count} of {codes.shape[-1]} entries of every group, "
                f"got {int(ones.min())}..{int(ones.max())}"
            )

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """A group is a row, or all rows."""
        rows, columns = matrix_shape(shape)
        return GroupLayout(shape, rows if self.per == "tensor" else 1, columns)

    def _count(self, group_size: int) -> int:
        return max(1, round(self.density * group_size))

    def num_nonzeros(self, shape: tuple[int, ...]) -> int:
        """The density's share of a group, at least one."""
        return self._count(self.layout(shape).group_size)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The nonzeros of each group."""
        count = self.num_nonzeros(shape)
        return {"values": (count,) if self.per == "tensor" else (matrix_shape(shape)[0], count)}

    def masks(self, codes: Tensor) -> Tensor:
        """The codes are the supports."""
        return codes.bool()

    def codes_of(self, masks: Tensor) -> Tensor:
        """The supports are the codes."""
        return masks.long()


@dataclass(frozen=True)
class SparseNM(SparseSupport):
    r"""``N`` of every ``M`` consecutive inputs are not zero (N:M, semi-structured sparsity).

    .. math:: \|w_g\|_0 = N, \qquad |g| = M

    A group's code is the number of its support among the :math:`C = \binom{M}{N}`, of
    :math:`\lceil\log_2 C\rceil` bits. Values: ``values`` ``[rows, columns / M, N]``, the nonzeros
    in order. 2:4 takes 3/4 bits per weight and half of what a nonzero takes.

    Args:
        nonzeros: ``N``, 1 to ``M - 1``.
        group_size: ``M``, 2 to 16.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if it is out of range, or (on use) the group does not divide the columns.

    Example:
        >>> SparseNM(2, 4).fit(torch.tensor([[1.0, -2.0, 0.1, 0.5]])).decode()
        tensor([[ 1., -2.,  0.,  0.]])

    References:
        Mishra et al., "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378), section 2.
    """

    nonzeros: int
    group_size: int

    def __post_init__(self) -> None:
        check_integer("group_size", self.group_size, 2, 16)
        check_integer("nonzeros", self.nonzeros, 1, self.group_size - 1)

    @property
    def code_bits(self) -> int:
        """Bits that number the supports."""
        return (self.num_codes - 1).bit_length()

    @property
    def num_codes(self) -> int:
        """The number of supports, ``M`` over ``N``."""
        return math.comb(self.group_size, self.nonzeros)

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """``M`` consecutive inputs."""
        check_divides("group_size", self.group_size, shape)
        return GroupLayout(shape, 1, self.group_size)

    def num_nonzeros(self, shape: tuple[int, ...]) -> int:
        """``N``."""
        return self.nonzeros

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The nonzeros of each group."""
        layout = self.layout(shape)
        return {"values": (layout.rows, layout.cols, self.nonzeros)}

    def masks(self, codes: Tensor) -> Tensor:
        """Look the supports up."""
        supports, _ = _tables(self.nonzeros, self.group_size)
        return supports.to(codes.device).index_select(0, codes[:, 0].int())

    def codes_of(self, masks: Tensor) -> Tensor:
        """Look the numbers of the supports up."""
        _, numbers = _tables(self.nonzeros, self.group_size)
        bits = torch.arange(self.group_size, device=masks.device)
        return numbers.to(masks.device)[(masks.long() << bits).sum(-1, keepdim=True)]


@cache
def _tables(nonzeros: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the supports ``[C, M]`` by number, and the numbers ``[2**M]`` by mask as bits."""
    places = torch.tensor(list(itertools.combinations(range(group_size), nonzeros)))
    supports = torch.zeros(len(places), group_size, dtype=torch.bool).scatter_(1, places, True)
    numbers = torch.full((1 << group_size,), -1)
    numbers[(1 << places).sum(1)] = torch.arange(len(places))
    return supports, numbers
