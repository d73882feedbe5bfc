"""Gradients of a stack of weights: the kernels of `codebook_grad`, with a list of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._lists import Listed, listed
from ._value_sums import listed_value_sums, value_sums_specs
from ._weights import codebook_weight
from .codebook_grad import segment_specs, segment_sums

__all__ = ["compile_specs", "stacked_codebook_grad"]

# Codes that are sorted together: with their numbers, and what the sort needs, about 100 MB.
_SORTED = 1 << 22


def stacked_codebook_grad(
    gradients: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    """Return both gradients in float32; see :func:`pvopt_kernels.stacked_codebook_grad`."""
    of_books = torch.empty(codebooks.shape, dtype=torch.float32, device=codes.device)
    of_scales = torch.empty(scales.shape, dtype=torch.float32, device=codes.device)
    together = max(1, _SORTED // max(1, codes[:1].numel()))
    for first in range(0, len(gradients), together):
        for dense in listed(gradients[first : first + together]):
            part = slice(first + dense.part.start, first + dense.part.stop)
            stack = codes[part], codebooks[part], scales[part]
            of_books[part], of_scales[part] = _of_listed(dense, *stack, out_group)
    return of_books, of_scales


def _of_listed(
    dense: Listed, codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    bare = codebook_weight(codes, codebooks, scales, out_group, scaled=False)
    of_scales = listed_value_sums(dense, bare, out_group)
    stack = codes, codebooks, scales
    return segment_sums(dense.addresses, *stack, out_group, dense.kind), of_scales


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.codebooks
    specs = value_sums_specs(
        {
            "fp32 2x8g8": ("fp32", of("fp32", 2, 256, 8, scaled=False)),
            "bf16 of fp32 2x8g8": ("bf16", of("fp32", 2, 256, 8, scaled=False)),
        },
        stacked=True,
    )
    return specs + segment_specs(stacked=True)
