"""Decoding a stack of weights: the kernel of `decode`, with a list of places to write to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _variants
from ._compile_spec import CompileSpec
from ._lists import listed
from ._weights import codebook_weight
from .decode import decode_specs, write_listed

__all__ = ["compile_specs", "decode_into"]


def decode_into(
    outs: Sequence[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> None:
    """Write the dense weights; see :func:`pvopt_kernels.decode_into`."""
    for dense in listed(outs, written=True):
        part = dense.part
        write_listed(codebook_weight(codes[part], codebooks[part], scales[part], out_group), dense)


def compile_specs() -> list[CompileSpec]:
    """Return the variants that are compiled in the tests."""
    of = _variants.codebooks
    return decode_specs(
        {
            "fp32 2x8g8": ("fp32", of("fp32", 2, 256, 8)),
            "bf16 from fp32 2x8g8": ("bf16", of("fp32", 2, 256, 8)),
            "fp16 1x16g16o4": ("fp16", of("fp16", 1, 65536, 4, out_group=4)),
        },
        stacked=True,
    )
