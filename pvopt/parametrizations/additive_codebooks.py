"""Additive codebooks (AQLM): a group is the scaled sum of one entry of each codebook."""

from __future__ import annotations

from dataclasses import dataclass

from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_integer

from .codebooks import Codebooks, check_scale_group
from .registry import PARAMETRIZATIONS

__all__ = ["AdditiveCodebooks"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="MxBg[Ox]N[/S]",
        meaning="M additive codebooks of B bits, groups of (O outputs by) N inputs",
        example="2x8g8, 1x16g8",
        pattern=r"(\d+)x(\d+)g(?:(\d+)x)?(\d+)(?:/(\d+))?",
        settings=lambda number, bits, out, size, scales: dict(
            num_codebooks=int(number),
            bits=int(bits),
            in_group=int(size),
            out_group=int(out or 1),
            scale_group=scales and int(scales),
        ),
        write=lambda p: (
            f"{p.num_codebooks}x{p.bits}g"
            + ("" if p.out_group == 1 else f"{p.out_group}x")
            + f"{p.in_group}"
            + (f"/{p.scale_group}" if p.scale_group else "")
        ),
    )
)
@dataclass(frozen=True, kw_only=True)
class AdditiveCodebooks(Codebooks):
    r"""``M`` codebooks of ``2**B`` vectors whose entries are added up ("MxBgN").

    .. math:: w_g = s_g \sum_{m=1}^{M} C_m[z_{g,m}]

    2x8g8 (``AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8)``) is about 2 bits per weight,
    1x16g8 about 2.3 on a 7B model, 1x8g8 about 1. The V step is a beam search in random order of
    the codebooks.

    Args:
        num_codebooks: ``M``, 1 to 16.
        bits: ``B``, width of one code, 1 to 16.
        in_group: columns (inputs) of a group.
        out_group: rows (outputs) of a group.
        scale_group: inputs that share a scale, a multiple of ``in_group``; None: a whole row.

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if one is out of range, or (on use) groups do not fit the weight.

    Example:
        >>> from pvopt import AdditiveCodebooks
        >>> books = AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8)
        >>> round(books.bits_per_weight((4096, 11008)), 4)
        2.0029

    References:
        AQLM (arXiv 2401.06118), section 3; PV-Tuning (arXiv 2405.14852), section 4.
    """

    num_codebooks: int
    bits: int
    in_group: int
    out_group: int = 1
    scale_group: int | None = None

    usual_beam = 5
    usual_fit_beam = 8
    usual_iterations = 1

    def __post_init__(self) -> None:
        check_integer("num_codebooks", self.num_codebooks, 1, 16)
        check_integer("bits", self.bits, 1, 16)
        check_integer("in_group", self.in_group, 1, 1024)
        check_integer("out_group", self.out_group, 1, 1024)
        check_scale_group(self.scale_group, "in_group", self.in_group)
