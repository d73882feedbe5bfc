"""Vector quantization: one codebook of short vectors per weight."""

from __future__ import annotations

from dataclasses import dataclass

from .codebooks import Codebooks
from .layout import GroupLayout, check_divides
from .validation import check_integer, check_scale_group

__all__ = ["VectorCodebook"]


@dataclass(frozen=True)
class VectorCodebook(Codebooks):
    r"""One codebook of ``2**bits`` vectors for groups of consecutive inputs (VQ).

    .. math:: w_g = s_g\, C[z_g]

    Args:
        bits: width of a code, 1 to 16.
        group_size: inputs in a group.
        scale_group: inputs that share a scale, a multiple of ``group_size``; None: a whole row.
        refine_iterations: rounds of codes and values after k-means.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if one is out of range, or (on use) groups do not divide the columns.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, -1.0, 2.0, 2.0], [2.0, -2.0, 1.0, 1.0]])
        >>> rep = VectorCodebook(bits=1, group_size=2).fit(weight)
        >>> rep.codes.shape, rep.values["codebooks"].shape
        (torch.Size([2, 2, 1]), torch.Size([1, 2, 2]))

    References:
        Gray, "Vector Quantization" (1984); PV-Tuning (arXiv 2405.14852), section 4.1.
    """

    bits: int
    group_size: int
    scale_group: int | None = None
    refine_iterations: int = 8

    num_codebooks = 1
    out_group = 1
    beam_size = 1  # a single codebook is searched exactly
    fit_beam_size = 1

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, 16)
        check_integer("group_size", self.group_size, 1, 1024)
        check_integer("refine_iterations", self.refine_iterations, 0, 1000)
        check_scale_group(self.scale_group, "group_size", self.group_size)

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Runs of ``group_size`` columns."""
        check_divides("group_size", self.group_size, shape)
        return super().layout(shape)

    @property
    def code_bits(self) -> int:
        """Bits of one code."""
        return self.bits

    @property
    def in_group(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Inputs in a group."""
        return self.group_size
