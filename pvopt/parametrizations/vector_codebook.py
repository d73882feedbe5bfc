"""Vector quantization: one codebook of short vectors per weight."""

from __future__ import annotations

from dataclasses import dataclass

from pvopt.core.layout import GroupLayout, check_divides
from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_integer

from .codebooks import Codebooks, check_scale_group
from .registry import PARAMETRIZATIONS

__all__ = ["VectorCodebook"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="vq:BgN[/S]",
        meaning="one codebook of B bits, groups of N inputs; a scale per S inputs (or row)",
        example="vq:8g4",
        pattern=r"vq:?(\d+)g(\d+)(?:/(\d+))?",
        settings=lambda bits, size, scales: dict(
            bits=int(bits), group_size=int(size), scale_group=scales and int(scales)
        ),
        write=lambda p: (
            f"vq:{p.bits}g{p.group_size}" + (f"/{p.scale_group}" if p.scale_group else "")
        ),
    )
)
@dataclass(frozen=True, kw_only=True)
class VectorCodebook(Codebooks):
    r"""One codebook of ``2**bits`` vectors for groups of consecutive inputs (VQ).

    .. math:: w_g = s_g\, C[z_g]

    Args:
        bits: width of a code, 1 to 16.
        group_size: inputs in a group.
        scale_group: inputs that share a scale, a multiple of ``group_size``; None: a whole row.

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if one is out of range, or (on use) groups do not divide the columns.

    Example:
        >>> import torch
        >>> from pvopt import VectorCodebook
        >>> weight = torch.tensor([[1.0, -1.0, 2.0, 2.0], [2.0, -2.0, 1.0, 1.0]])
        >>> rep = VectorCodebook(bits=1, group_size=2).fit(weight)
        >>> rep.codes["entries"].shape, rep.values["codebooks"].shape
        (torch.Size([2, 2, 1]), torch.Size([1, 2, 2]))

    References:
        Gray, "Vector Quantization" (1984); PV-Tuning (arXiv 2405.14852), section 4.1.
    """

    bits: int
    group_size: int
    scale_group: int | None = None

    num_codebooks = 1
    out_group = 1
    usual_beam = 1  # a single codebook is searched exactly
    usual_fit_beam = 1
    usual_iterations = 8

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, 16)
        check_integer("group_size", self.group_size, 1, 1024)
        check_scale_group(self.scale_group, "group_size", self.group_size)

    @property
    def in_group(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Inputs in a group."""
        return self.group_size

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        check_divides("group_size", self.group_size, shape)
        return super().layout(shape)
