"""Sparse weights with free nonzeros: a share of each row or of the tensor, or N of every M."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, check_divides, matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_integer

from .registry import PARAMETRIZATIONS
from .sparse_support import SparseSupport

__all__ = ["Sparse", "SparseNM"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="sparse:P%[:tensor]",
        meaning="P percent nonzeros in each row, or in all",
        example="sparse:50%",
        pattern=r"sparse:?(\d+(?:\.\d+)?)%(?::(tensor))?",
        settings=lambda percent, per: dict(density=_share(percent), per=per or "row"),
        write=lambda p: f"sparse:{_percent(p.density)}%" + ":tensor" * (p.per == "tensor"),
    )
)
@dataclass(frozen=True, kw_only=True)
class Sparse(SparseSupport):
    r"""A share of the entries of every row, or of the whole weight, is not zero.

    .. math:: \|w_g\|_0 = k, \qquad k = \mathrm{round}(\text{density} \cdot |g|) \ge 1

    A group is a row or the whole weight; its codes are the mask, a bit per weight (in whole
    bytes). Values: ``values``, the nonzeros in order, ``[rows, k]`` or ``[k]``. With 16 bits for a
    nonzero that is 1 + 16 density bits per weight.

    A V step moves whole groups: with ``per="tensor"`` there is one, which a subspace rule always
    selects and a trust region always accepts.

    Args:
        density: share of nonzeros, in (0, 1].
        per: ``"row"`` or ``"tensor"``, what the share is taken of.

    Raises:
        TypeError: if ``density`` is not a number.
        ValueError: for a density out of range or another ``per``.

    Example:
        >>> import torch
        >>> from pvopt import Sparse
        >>> weight = torch.tensor([[1.0, -2.0, 0.1, 0.0], [3.0, 4.0, 5.0, 6.0]])
        >>> Sparse(density=0.5).fit(weight).decode()
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

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        """The mask, eight bits in a byte; the last byte of a group is filled up with zeros."""
        layout = self.layout(shape)
        size = (layout.rows, layout.cols, -(-layout.group_size // 8))
        return {"support": CodeStream(shape=size, num_codes=256)}

    def check_codes(self, codes: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise unless every mask has its number of ones."""
        size, support = self.layout(shape).group_size, codes["support"]
        bits = _bits(support.reshape(-1, support.shape[-1]))
        if bool(bits[:, size:].any()):
            raise ValueError("codes of 'support' must be 0 beyond the last entry of a group")
        ones, count = bits.sum(1), self._count(size)
        if not bool((ones == count).all()):
            raise ValueError(
                f"codes of 'support' must keep {count} of {size} entries of every group, "
                f"got {int(ones.min())}..{int(ones.max())}"
            )

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        rows, columns = matrix_shape(shape)
        return GroupLayout(shape, rows if self.per == "tensor" else 1, columns)

    def _count(self, group_size: int) -> int:
        return max(1, round(self.density * group_size))

    def num_nonzeros(self, shape: tuple[int, ...]) -> int:
        return self._count(self.layout(shape).group_size)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        count = self.num_nonzeros(shape)
        return {"values": (count,) if self.per == "tensor" else (matrix_shape(shape)[0], count)}

    def masks(self, codes: Tensor, group_size: int) -> Tensor:
        return _bits(codes)[:, :group_size]

    def codes_of(self, masks: Tensor) -> Tensor:
        bytes_ = torch.nn.functional.pad(masks.long(), (0, -masks.shape[-1] % 8))
        return (bytes_.unflatten(-1, (-1, 8)) << torch.arange(8, device=masks.device)).sum(-1)


def _bits(codes: Tensor) -> Tensor:
    """Return the bits of bytes ``[n, bytes]``, lowest first, ``[n, 8 * bytes]`` bool."""
    places = 1 << torch.arange(8, dtype=torch.uint8, device=codes.device)
    return (codes.to(torch.uint8)[..., None] & places).ne(0).flatten(1)


def _share(percent: str) -> float:
    """Return the number of a decimal percentage, correctly rounded."""
    return float(Decimal(percent) / 100)


def _percent(density: float) -> str:
    """Return the percentage that :func:`_share` reads back exactly."""
    return f"{(Decimal(repr(density)) * 100).normalize():f}"


@PARAMETRIZATIONS.register(
    ShortForm(
        form="N:M",
        meaning="N nonzeros in M inputs",
        example="2:4",
        pattern=r"(\d+):(\d+)",
        settings=lambda count, size: dict(nonzeros=int(count), group_size=int(size)),
        write=lambda p: f"{p.nonzeros}:{p.group_size}",
    )
)
@dataclass(frozen=True, kw_only=True)
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
        TypeError: if an argument is not an integer.
        ValueError: if it is out of range, or (on use) the group does not divide the columns.

    Example:
        >>> import torch
        >>> from pvopt import SparseNM
        >>> SparseNM(nonzeros=2, group_size=4).fit(torch.tensor([[1.0, -2.0, 0.1, 0.5]])).decode()
        tensor([[ 1., -2.,  0.,  0.]])

    References:
        Mishra et al., "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378), section 2.
    """

    nonzeros: int
    group_size: int

    def __post_init__(self) -> None:
        check_integer("group_size", self.group_size, 2, 16)
        check_integer("nonzeros", self.nonzeros, 1, self.group_size - 1)

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        layout = self.layout(shape)
        number = math.comb(self.group_size, self.nonzeros)
        return {"support": CodeStream(shape=(layout.rows, layout.cols, 1), num_codes=number)}

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        check_divides("group_size", self.group_size, shape)
        return GroupLayout(shape, 1, self.group_size)

    def num_nonzeros(self, shape: tuple[int, ...]) -> int:
        return self.nonzeros

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        layout = self.layout(shape)
        return {"values": (layout.rows, layout.cols, self.nonzeros)}

    def masks(self, codes: Tensor, group_size: int) -> Tensor:
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
