"""Gradients of codebooks and scales on CPUs."""

from __future__ import annotations

from torch import Tensor

from .stacked_codebook_grad import stacked_codebook_grad

__all__ = ["codebook_grad"]


def codebook_grad(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients in float32; see :func:`pvopt_kernels.codebook_grad`."""
    of_books, of_scales = stacked_codebook_grad(
        [gradient], codes[None], codebooks[None], scales[None], out_group
    )
    return of_books[0], of_scales[0]
