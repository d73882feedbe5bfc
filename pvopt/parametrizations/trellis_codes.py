"""The codes of trellises: what a state stands for, and which of it can be tuned."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pvopt.fits.kmeans import kmeans
from pvopt_kernels import hybrid_index, trellis_table
from pvopt_kernels.trellis_tables import FIXED_CODES

__all__ = ["CODES", "entries", "expand", "start_table", "table_shape", "weights_per_step"]

_HYBRID, _TABLE = "hyb", "table"
#: All codes by name.
CODES = (*FIXED_CODES, _HYBRID, _TABLE)
# Pairs of the hybrid code's table, 2^9 as in QTIP: 0.03 bits a weight for 500 thousand weights.
_HYBRID_BITS = 9


def weights_per_step(code: str) -> int:
    """Return how many weights a state stands for."""
    return 2 if code == _HYBRID else 1


def table_shape(code: str, state_bits: int) -> tuple[int, int] | None:
    """Return the shape of the table that is a value, or None for a fixed formula."""
    if code == _HYBRID:
        return 1 << min(_HYBRID_BITS, state_bits), 2
    return (1 << state_bits, 1) if code == _TABLE else None


def expand(code: str, state_bits: int, table: Tensor | None, like: Tensor) -> Tensor:
    """Return what each state stands for, without scales; differentiable in the table.

    Args:
        code: one of :data:`CODES`.
        state_bits: of a state.
        table: the value ``[entries, V]``, or None for a fixed formula.
        like: gives device and dtype.

    Returns:
        ``[2**state_bits, V]``
    """
    if table is None:
        return trellis_table(code, state_bits).to(like)[:, None]
    numbers, signs = entries(code, state_bits, like)
    return table if signs is None else table.index_select(0, numbers) * signs


def entries(code: str, state_bits: int, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return which entry of the table each state reads, and its signs if there are any.

    Args:
        code: ``"hyb"`` or ``"table"``.
        state_bits: of a state.
        weights: give device and dtype.

    Returns:
        Numbers ``[2**state_bits]`` int64, and signs ``[2**state_bits, V]`` or None.
    """
    if code == _TABLE:
        return torch.arange(1 << state_bits, device=weights.device), None
    pairs, signs = _hybrid(state_bits)
    return pairs.to(weights.device), signs.to(weights)


@functools.cache
def _hybrid(state_bits: int) -> tuple[Tensor, Tensor]:
    return hybrid_index(state_bits, min(_HYBRID_BITS, state_bits))


@functools.cache
def start_table(code: str, state_bits: int) -> Tensor:
    """Return the table that a fit begins with, for weights that look Gaussian.

    A table of all states has the Gaussian's quantiles in the order of ``mul1``; the hybrid one has
    the centroids of Gaussian pairs whose first weight is positive.

    Args:
        code: ``"hyb"`` or ``"table"``.
        state_bits: of a state.
    """
    shape = table_shape(code, state_bits)
    assert shape is not None, code
    if code == _TABLE:
        ranks = trellis_table("mul1", state_bits).argsort(stable=True).argsort()
        places = (ranks.double() + 0.5) / len(ranks)
        return torch.special.ndtri(places).float()[:, None]
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1 << 15, 2, generator=generator)
    points[:, 0].abs_()
    return kmeans(points, shape[0], generator=generator)
