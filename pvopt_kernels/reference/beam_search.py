"""Nearest codes: exact for one codebook, beam search for a sum of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .smallest import smallest

__all__ = ["beam_search"]

# Scores of one chunk stay within 4 MiB (two cores with 2 MiB of second-level cache each): chunks of
# 1 to 16 Ki groups measure the same, larger ones are 20 % slower.
_CHUNK_ELEMENTS = 1 << 20


def beam_search(
    target: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    k: int,
    *,
    beam_size: int,
    order: Sequence[int],
    metric: Tensor | None = None,
) -> Tensor:
    """Return candidates ``[n, k', M]`` int64; see :func:`pvopt_kernels.beam_search`."""
    beam_size = max(beam_size, k)
    exact = torch.promote_types(target.dtype, codebooks.dtype)
    exact = torch.promote_types(exact, torch.float32)
    target, codebooks, codes = target.to(exact), codebooks.to(exact), codes.long()
    metric = None if metric is None else metric.to(exact)
    stack = codebooks if codebooks.dim() == 4 else codebooks[None]
    if len(stack) == 0:
        stack = stack.new_zeros(1, *stack.shape[1:])
    each = len(target) // len(stack)
    chunk = max(16, _CHUNK_ELEMENTS // (stack.shape[2] * beam_size))
    parts = []
    for w, books in enumerate(stack):
        last = (w + 1) * each
        for start in range(w * each, max(w * each + 1, last), chunk):  # an empty one for the shape
            part = slice(start, min(start + chunk, last))
            weights = None if metric is None else metric[part]
            found = _beam_chunk(target[part], books, codes[part], beam_size, order, weights)
            parts.append(found[:, :k])
    return torch.cat(parts)


def _beam_chunk(
    target: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    beam_size: int,
    order: Sequence[int],
    metric: Tensor | None,
) -> Tensor:
    n, group_size = target.shape
    num_entries = codebooks.shape[1]
    beams = codes[:, None]  # [n, beams, M]
    residual = target - sum(book[z] for book, z in zip(codebooks, codes.unbind(1), strict=True))
    residual = residual[:, None]  # [n, beams, g], target minus the sum of all books
    for m in order:
        book = codebooks[m]  # [K, g]
        residual = residual + book[beams[..., m]]  # without book m
        weighted = residual if metric is None else residual * metric[:, None]
        constant = (weighted * residual).sum(-1, keepdim=True)  # [n, beams, 1]
        # One product gives |r|^2 - 2 r.c + |c|^2, the squared error of every entry. Scores serve
        # the ranking only; the caller measures the survivors exactly.
        if metric is None:
            left = torch.cat([-2 * weighted, constant, torch.ones_like(constant)], dim=-1)
            right = torch.cat(
                [book, book.new_ones(num_entries, 1), book.square().sum(1, keepdim=True)], dim=1
            )
        else:
            spread = metric[:, None].expand(-1, beams.shape[1], -1)
            left = torch.cat([-2 * weighted, constant, spread], dim=-1)
            right = torch.cat([book, book.new_ones(num_entries, 1), book.square()], dim=1)
        scores = left.flatten(0, 1) @ right.T  # [n * beams, K]
        scores = scores.view(n, beams.shape[1] * num_entries)
        best = smallest(scores, min(beam_size, scores.shape[1]))[1]  # [n, beams']
        parent, entry = best // num_entries, best % num_entries
        beams = beams.gather(1, parent[..., None].expand(-1, -1, beams.shape[2])).clone()
        beams[..., m] = entry
        residual = residual.gather(1, parent[..., None].expand(-1, -1, group_size)) - book[entry]
    return beams
