"""Gradients of the codebooks and scales of a stack of weights, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .codebook_grad import codebook_grad

__all__ = ["stacked_codebook_grad"]


def stacked_codebook_grad(
    gradients: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return both in at least float32; see :func:`pvopt_kernels.stacked_codebook_grad`."""
    exact = torch.promote_types(codebooks.dtype, torch.float32)
    of_books = torch.empty(codebooks.shape, dtype=exact, device=codes.device)
    of_scales = torch.empty(scales.shape, dtype=exact, device=codes.device)
    for w, weight in enumerate(zip(gradients, codes, codebooks, scales, strict=True)):
        of_books[w], of_scales[w] = codebook_grad(*weight, out_group)
    return of_books, of_scales
