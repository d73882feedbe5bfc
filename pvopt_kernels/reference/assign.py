"""The nearest codebook entries of each group, by their exact errors in chunks of groups."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assign"]

# Errors of one chunk: 4 MiB of float32, which stays in the second-level caches.
_CHUNK_ELEMENTS = 1 << 20


def assign(
    target: Tensor, codebook: Tensor, k: int, *, metric: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes and errors, ``[n, k]`` each; see :func:`pvopt_kernels.assign`."""
    exact = torch.promote_types(target.dtype, codebook.dtype)
    if metric is not None:
        exact = torch.promote_types(exact, metric.dtype)
    exact = torch.promote_types(exact, torch.float32)
    columns = codebook.to(exact).T.contiguous()  # [g, K]
    n, entries = len(target), len(codebook)
    codes = torch.empty(n, k, dtype=torch.int64, device=target.device)
    errors = torch.empty(n, k, dtype=exact, device=target.device)
    chunk = max(1, _CHUNK_ELEMENTS // entries)
    for start in range(0, n, chunk):
        part = slice(start, start + chunk)
        points = target[part].to(exact)
        total = points.new_zeros(len(points), entries)
        # Column by column, so that equal entries have equal errors whatever their place.
        for i, column in enumerate(columns):
            square = (points[:, i, None] - column).square_()
            total += square if metric is None else square.mul_(metric[part, i, None])
        for j in range(k):  # argmin returns the first of equal entries; topk does not
            best = total.argmin(1, keepdim=True)
            codes[part, j, None] = best
            errors[part, j, None] = total.gather(1, best)
            total.scatter_(1, best, torch.inf)
    return codes, errors
