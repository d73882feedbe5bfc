"""What starts are compared with: GPTQ, SparseGPT and exact greedy OBS, as published, plainly."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

__all__ = ["greedy_obs", "reference_gptq", "sparse_gpt"]

_DAMPING = 0.01


def _damped(hessian: Tensor) -> Tensor:
    hessian = hessian.double()
    return hessian + _DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))


def _upper(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def _grid(rows: Tensor, bits: int, *, symmetric: bool, search: bool) -> tuple[Tensor, Tensor]:
    """Return scale and integer zero point ``[rows, 1]`` from min and max.

    With ``search`` the range is shrunk towards 0 by up to 80 %, for the least sum of
    ``|error| ** 2.4``.
    """
    top = 2**bits - 1
    low, high = rows.amin(1, True).clamp(max=0), rows.amax(1, True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = torch.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.zeros_like(low), torch.zeros_like(low)
    for step in range(80 if search else 1):
        share = 1 - step / 100
        own = share * (high - low) / top
        middle = torch.full_like(low, (top + 1) / 2) if symmetric else (-share * low / own).round()
        errors = (_rounded(rows, own, middle, top) - rows).abs().pow(2.4).sum(1, True)
        better = errors < best
        best = torch.where(better, errors, best)
        scale, zero = torch.where(better, own, scale), torch.where(better, middle, zero)
    return scale, zero


def _rounded(rows: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    return scale * ((rows / scale + zero).round().clamp(0, top) - zero)


def reference_gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group: int,
    symmetric: bool = False,
    order: bool = False,
    moving: bool = False,
    search: bool = True,
) -> Tensor:
    """Return what GPTQ rounds a weight to.

    Args:
        weight: ``[out, in]``.
        hessian: ``[in, in]`` X'X.
        bits: of the grid.
        group: inputs that share scale and zero point.
        symmetric: whether the zero point is fixed.
        order: activation order.
        moving: with activation order, whether groups are of inputs of like energy; they are
            otherwise neighbours, with scales of the weight as it was (static groups).
        search: whether the range of a grid is searched.

    References:
        GPTQ (arXiv 2210.17323), algorithm 1; activation order and groups as its public code has
        them.
    """
    hessian, rest = _damped(hessian), weight.double().clone()
    columns, top = len(hessian), 2**bits - 1
    visits = hessian.diagonal().argsort(descending=True, stable=True) if order else None
    visits = torch.arange(columns) if visits is None else visits
    upper = _upper(hessian[visits][:, visits])
    rest = rest[:, visits]
    found = [
        _grid(p, bits, symmetric=symmetric, search=search) for p in weight.double().split(group, 1)
    ]
    result = torch.zeros_like(rest)
    scale, zero = found[0]
    for place, column in enumerate(visits.tolist()):
        if order and not moving:
            scale, zero = found[column // group]
        elif place % group == 0:
            part = rest[:, place : place + group]
            scale, zero = _grid(part, bits, symmetric=symmetric, search=search)
        here = rest[:, place : place + 1]
        result[:, place : place + 1] = _rounded(here, scale, zero, top)
        error = (here - result[:, place : place + 1]) / upper[place, place]
        rest[:, place:] -= error * upper[place, place:]
    back = torch.empty_like(result)
    back[:, visits] = result
    return back.to(weight.dtype)


def sparse_gpt(
    weight: Tensor,
    hessian: Tensor,
    *,
    keep: float = 0.5,
    pattern: tuple[int, int] | None = None,
    bits: int | None = None,
    group: int = 64,
    block: int = 128,
) -> Tensor:
    """Return what SparseGPT prunes (and rounds) a weight to.

    Args:
        weight: ``[out, in]``.
        hessian: ``[in, in]`` X'X.
        keep: share of the weights of each block of columns, of all rows together, that stay.
        pattern: N and M of N:M instead.
        bits: of a grid that the others are rounded to, or None.
        group: columns that share scale and zero point.
        block: columns whose masks are chosen at once.

    References:
        SparseGPT (arXiv 2301.00774), algorithm 1 and section 3.5.
    """
    upper, rest = _upper(_damped(hessian)), weight.double().clone()
    columns, result = len(hessian), torch.zeros_like(weight, dtype=torch.float64)
    size = pattern[1] if pattern else block
    mask = torch.ones_like(weight, dtype=torch.bool)
    scale = zero = torch.ones_like(rest[:, :1])
    for place in range(columns):
        if place % size == 0:
            here = slice(place, place + size)
            saliency = (rest[:, here] / upper.diagonal()[here]).square()
            if pattern:
                lost = saliency.topk(size - pattern[0], 1, largest=False).indices
                mask = torch.ones_like(saliency, dtype=torch.bool).scatter_(1, lost, False)
            else:
                limit = saliency.flatten().sort().values[int(saliency.numel() * (1 - keep)) - 1]
                mask = saliency > limit
        if bits and place % group == 0:
            part = rest[:, place : place + group]
            scale, zero = _grid(part, bits, symmetric=False, search=True)
        own = rest[:, place : place + 1]
        kept = _rounded(own, scale, zero, 2**bits - 1) if bits else own
        result[:, place : place + 1] = torch.where(mask[:, place % size, None], kept, 0.0)
        error = (own - result[:, place : place + 1]) / upper[place, place]
        rest[:, place:] -= error * upper[place, place:]
    return result.to(weight.dtype)


def greedy_obs(weight: Tensor, hessian: Tensor, *, keep: float = 0.5) -> Tensor:
    """Return a weight pruned one entry at a time, of all rows the one that costs least.

    Rows do not meet, so each is pruned on its own and the traces are merged.

    References:
        Optimal Brain Compression (arXiv 2208.11580), section 4.
    """
    hessian = _damped(hessian)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    rows, columns = weight.shape
    state = weight.double().clone(), inverse.repeat(rows, 1, 1)
    costs, order = [], []
    alive = torch.ones(rows, columns, dtype=torch.bool)
    every = torch.arange(rows)
    for _ in range(columns):
        rest, inverses = state
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        saliency = (rest.square() / diagonal).masked_fill(~alive, torch.inf)
        cost, chosen = saliency.min(1)
        costs.append(cost)
        order.append(chosen)
        pivot = inverses[every, chosen]  # [rows, columns]
        own = pivot[every, chosen]
        rest -= (rest[every, chosen] / own)[:, None] * pivot
        inverses -= pivot[:, :, None] * pivot[:, None] / own[:, None, None]
        alive[every, chosen] = False
        rest.masked_fill_(~alive, 0.0)
    heap = [(float(costs[0][row]), row, 0) for row in range(rows)]
    heapq.heapify(heap)
    support = torch.ones(rows, columns, dtype=torch.bool)
    for _ in range(round((1 - keep) * rows * columns)):
        _, row, place = heapq.heappop(heap)
        support[row, order[place][row]] = False
        if place + 1 < columns:
            heapq.heappush(heap, (float(costs[place + 1][row]), row, place + 1))
    result = torch.zeros_like(weight, dtype=torch.float64)
    goal = weight.double() @ hessian
    for row, own in enumerate(support):
        result[row, own] = torch.linalg.solve(hessian[own][:, own], goal[row, own])
    return result.to(weight.dtype)
