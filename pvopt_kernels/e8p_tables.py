"""Tables of QuIP#'s codebooks, generated from their definition."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

__all__ = ["NUM_EVEN", "SHIFTS", "e8_ball", "e8p_absolute", "signed_tables"]

SHIFTS = (-0.25, 0.25)
NUM_EVEN = 107  # absolute vectors of even sum, which come first


def e8p_absolute() -> Tensor:
    r"""Return the 256 absolute vectors of E8P, generated from their definition.

    All half-odd vectors of squared norm at most 10 (227 of them), and 29 of the 56 of squared norm
    12, those that QuIP# took. The first 107 have an even sum, the other 149 an odd one; both parts
    are in lexicographic order.

    .. math:: \{|x| : x \in D_8 + \tfrac12,\ \|x\|^2 \le 10\}\ \cup\ \text{29 of norm}\ 12

    Returns:
        ``[256, 8]`` float64; every vector occurs once.

    Example:
        >>> from pvopt_kernels import e8p_absolute
        >>> e8p_absolute().square().sum(1).unique(return_counts=True)[1].tolist()
        [1, 8, 28, 64, 126, 29]

    References:
        QuIP# (arXiv 2402.04396), section 4.2 and appendix C.1.
    """
    return _absolute().clone()


@functools.cache
def _absolute() -> Tensor:
    odd = itertools.product((1, 3, 5), repeat=8)
    vectors = [x for x in odd if sum(v * v for v in x) <= 40]
    # Norm 12 has five entries 3/2 and three 1/2. QuIP# takes the 28 with an even number of 1/2 in
    # the second half, but for one of them, and two others.
    triples = {
        triple
        for triple in itertools.combinations(range(8), 3)
        if sum(place >= 4 for place in triple) % 2 == 0
    }
    triples = triples - {(1, 4, 5)} | {(0, 1, 4), (2, 3, 7)}
    vectors += [tuple(1 if i in t else 3 for i in range(8)) for t in sorted(triples)]
    vectors.sort(key=lambda x: (sum(x) // 2 % 2, x))
    return torch.tensor(vectors, dtype=torch.float64) / 2


@functools.cache
def signed_tables() -> tuple[Tensor, Tensor, Tensor]:
    """Return three tables by code: vectors and signs ``[256, 8]``, shifts ``[256, 1]``; float64.

    The sign of the last place follows from the others: the product of all signs is 1 where the
    vector's sum is even and -1 where it is odd. Here it is in the vector where the sum is odd.
    """
    vectors = _absolute().clone()
    vectors[:, 7] *= 1 - 2 * (vectors.sum(1) % 2)
    code = torch.arange(256)
    minus = code[:, None] >> torch.arange(7) & 1  # [256, 7]
    minus = torch.cat([minus, minus.sum(1, keepdim=True) % 2], dim=1)
    shifts = torch.tensor(SHIFTS, dtype=torch.float64)[code >> 7][:, None]
    return vectors, (1 - 2 * minus).double(), shifts


def e8_ball() -> Tensor:
    r"""Return 256 points of E8 around the origin: QuIP#'s 1-bit codebook for residuals.

    The origin, the 240 roots (squared norm 2) and 15 of the points :math:`\pm 2 e_i`.

    Returns:
        ``[256, 8]`` float64; every point occurs once.

    Example:
        >>> from pvopt_kernels import e8_ball
        >>> e8_ball().square().sum(1).unique(return_counts=True)
        (tensor([0., 2., 4.], dtype=torch.float64), tensor([  1, 240,  15]))

    References:
        QuIP# (arXiv 2402.04396), section 4.3.
    """
    return _ball().clone()


@functools.cache
def _ball() -> Tensor:
    points = [(0.0,) * 8]
    for i, j in itertools.combinations(range(8), 2):
        for a, b in itertools.product((-1.0, 1.0), repeat=2):
            points.append(tuple(a if n == i else b if n == j else 0.0 for n in range(8)))
    halves = itertools.product((-0.5, 0.5), repeat=8)
    points += [x for x in halves if sum(x) % 2 == 0]
    axes = [(i, sign) for sign in (2.0, -2.0) for i in range(8)][:15]
    points += [tuple(sign if n == i else 0.0 for n in range(8)) for i, sign in axes]
    return torch.tensor(points, dtype=torch.float64)
