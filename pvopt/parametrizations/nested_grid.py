"""Affine grids whose scales and offsets are small integers times those of a super-block (Q2_K)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, check_divides
from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_integer
from pvopt.metrics.contract import Metric

from .affine_grid import AffineGrid
from .nested_fit import fit_nested
from .offset_grid import OffsetGrid
from .options import FitOptions
from .preparation import prepare_fit, usual_size
from .registry import PARAMETRIZATIONS
from .representation import Representation

__all__ = ["NestedGrid"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="nested:B[gN[xM]][sC]",
        meaning="B-bit integers; scale and offset per N inputs are C-bit codes, M share theirs",
        example="nested:2, nested:4g32x8s6",
        pattern=r"nested:(\d+)(?:g(\d+)(?:x(\d+))?)?(?:s(\d+))?",
        settings=lambda *numbers: {
            name: int(number)
            for name, number in zip(
                ("bits", "group_size", "groups", "scale_bits"), numbers, strict=True
            )
            if number
        },
        write=lambda p: f"nested:{p.bits}g{p.group_size}x{p.groups}s{p.scale_bits}",
    )
)
@dataclass(frozen=True, kw_only=True)
class NestedGrid(OffsetGrid):
    r"""Integers of ``b`` bits, scaled and shifted by codes of a super-block's scale and offset.

    .. math:: w = s_B\,\sigma_g\,q + m_B\,\mu_g, \qquad q \in \{0, \dots, 2^b - 1\},\quad
        \sigma_g, \mu_g \in \{0, \dots, 2^c - 1\}

    Streams: ``levels``, and one code per group ``scales`` and ``offsets``, which fits and files set
    and V steps leave. Values: ``scales`` and ``offsets``, one per super-block of several groups: a
    scale for every 16 weights costs 4 bits instead of 16. The settings by default are llama.cpp's
    Q2_K, 2.625 bits a weight.

    Args:
        bits: ``b``, 1 to 8.
        group_size: inputs that share a scale and an offset.
        groups: of a super-block, whose inputs must divide the columns.
        scale_bits: ``c``, 1 to 8.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if one is out of range, or (on use) the super-block does not divide the columns.

    Example:
        >>> import torch
        >>> from pvopt import NestedGrid
        >>> weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
        >>> rep = NestedGrid(bits=2).fit(weight)
        >>> rep.codes["scales"].shape, rep.values["scales"].shape
        (torch.Size([8, 16]), torch.Size([8, 1]))
        >>> NestedGrid(bits=2).bits_per_weight((8, 256))
        2.625

    References:
        The k-quants of llama.cpp.
    """

    bits: int = 2
    group_size: int = 16  # pyright: ignore[reportIncompatibleVariableOverride]
    groups: int = 16
    scale_bits: int = 4

    # A code of 0 leaves out what is beyond it.
    pull_sums_all = False

    def __post_init__(self) -> None:
        check_integer("groups", self.groups, 1, 1 << 20)
        check_integer("scale_bits", self.scale_bits, 1, 8)
        super().__post_init__()

    @property
    def _block_size(self) -> int:
        """Inputs of a super-block."""
        return self.group_size * self.groups

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        size, count = self._scale_shape(shape), 1 << self.scale_bits
        own = CodeStream(shape=size, num_codes=count, moves=False)
        return {**super().streams(shape), "scales": own, "offsets": own}

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        check_divides("group_size * groups", self._block_size, shape)
        return super().layout(shape)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        rows, number = self._scale_shape(shape)
        size = (rows, number // self.groups)
        return {"scales": size, "offsets": size}

    def value_columns(self, shape: tuple[int, ...]) -> None:
        return None  # codes of scales belong to fewer columns than values

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Fit each group by itself, round its scale and offset, and refit the rest to that."""
        weight, importance, generator = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        self.layout(shape)
        free = AffineGrid(bits=self.bits, group_size=self.group_size)
        rep = free.fit(weight, metric=metric, options=options, generator=generator)
        found = fit_nested(
            weight.view(-1, self.groups, self.group_size),
            None if importance is None else importance.view(-1, self.groups, self.group_size),
            rep.values["scales"].view(-1, self.groups),
            rep.values["offsets"].view(-1, self.groups),
            bits=self.bits,
            scale_bits=self.scale_bits,
            usual=usual_size(shape),
        )
        codes = {"levels": found.levels, "scales": found.steps, "offsets": found.shifts}
        streams = self.streams(shape).items()
        codes = {n: codes[n].reshape(stream.shape).to(stream.dtype) for n, stream in streams}
        values = {"scales": found.scale, "offsets": found.offset}
        sizes = self.value_shapes(shape).items()
        return Representation(self, codes, {n: values[n].reshape(s) for n, s in sizes}, shape)

    def _scales_and_offsets(self, rep: Representation, groups: Tensor | None) -> list[Tensor]:
        products = (
            rep.values[name].repeat_interleave(self.groups, 1) * rep.codes[name].to(rep.dtype)
            for name in self.scaling
        )
        return self._of_groups(rep, products, groups)
