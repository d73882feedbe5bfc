"""Additive codebooks (AQLM): a group is the scaled sum of one entry of each codebook."""

from __future__ import annotations

from dataclasses import dataclass

from .codebooks import Codebooks
from .validation import check_integer, check_scale_group

__all__ = ["AdditiveCodebooks"]


@dataclass(frozen=True)
class AdditiveCodebooks(Codebooks):
    r"""``M`` codebooks of ``2**B`` vectors whose entries are added up ("MxBgN").

    .. math:: w_g = s_g \sum_{m=1}^{M} C_m[z_{g,m}]

    2x8g8 (``AdditiveCodebooks(2, 8, 8)``) is about 2 bits per weight, 1x16g8 about 2.3 on a 7B
    model, 1x8g8 about 1. The V step is a beam search in random codebook order.

    Args:
        num_codebooks: ``M``, 1 to 16.
        bits: ``B``, width of one code, 1 to 16.
        in_group: columns (inputs) of a group.
        out_group: rows (outputs) of a group.
        scale_group: inputs that share a scale, a multiple of ``in_group``; None: a whole row.
        beam_size: combinations the V step keeps between codebooks.
        fit_beam_size: the same in the last round of :meth:`Parametrization.fit`.
        refine_iterations: rounds of codes and values after residual k-means.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if one is out of range, or (on use) groups do not fit the weight.

    Example:
        >>> round(AdditiveCodebooks(2, 8, in_group=8).bits_per_weight((4096, 11008)), 4)
        2.0029

    References:
        AQLM (arXiv 2401.06118), section 3; PV-Tuning (arXiv 2405.14852), section 4.
    """

    num_codebooks: int
    bits: int
    in_group: int
    out_group: int = 1
    scale_group: int | None = None
    beam_size: int = 5
    fit_beam_size: int = 8
    refine_iterations: int = 1

    def __post_init__(self) -> None:
        check_integer("num_codebooks", self.num_codebooks, 1, 16)
        check_integer("bits", self.bits, 1, 16)
        check_integer("in_group", self.in_group, 1, 1024)
        check_integer("out_group", self.out_group, 1, 1024)
        check_integer("beam_size", self.beam_size, 1, 1024)
        check_integer("fit_beam_size", self.fit_beam_size, 1, 1024)
        check_integer("refine_iterations", self.refine_iterations, 0, 1000)
        check_scale_group(self.scale_group, "in_group", self.in_group)

    @property
    def code_bits(self) -> int:
        """Bits of one code."""
        return self.bits
