"""Scales of a codebook format as codes of a small shared table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.fits.kmeans import kmeans, nearest_centroid
from pvopt_kernels import sum_by_code

from .contract import Parametrization
from pvopt.metrics.block import BlockMetric
from .codebooks import Codebooks
from .e8p import E8P
from .layout import GroupLayout
from .representation import Representation, code_dtype
from .validation import check_integer, prepare_fit

__all__ = ["QuantizedScales"]


@dataclass(frozen=True)
class QuantizedScales(Parametrization):
    r"""Codebooks whose scales are themselves codes of a table of ``2**bits`` scales.

    .. math:: s_i = T[q_i], \qquad q_i \in \{0, \dots, 2^b - 1\}

    Small groups of inputs with a scale of their own follow the weight better, but 16 bits for each
    64 weights are a quarter bit per weight; 6 bits are less than a tenth, at the same error. The
    table is a value, tuned like any other. The scales' codes are set by the fit and stay: the V
    step moves those of the groups only. In memory every group repeats the code of its scale, as the
    last of its codes; a file holds it once.

    Args:
        inner: :class:`pvopt.VectorCodebook`, :class:`pvopt.AdditiveCodebooks` or
            :class:`pvopt.E8P`.
        bits: of a scale's code, 1 to 8.

    Raises:
        TypeError: if ``inner`` is of another class or ``bits`` no integer.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> from pvopt import E8P
        >>> fine = E8P(2, scale_group=64)
        >>> for p in (fine, QuantizedScales(fine, bits=6)):
        ...     print(round(p.bits_per_weight((1536, 576)), 4))
        2.25
        2.0949

    References:
        Dettmers et al., "QLoRA" (arXiv 2305.14314), section 3, "Double Quantization".
    """

    inner: Parametrization
    bits: int = 6

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Codebooks | E8P):
            raise TypeError(
                "inner must be VectorCodebook, AdditiveCodebooks or E8P, got "
                f"{type(self.inner).__name__}"
            )
        check_integer("bits", self.bits, 1, 8)

    @property
    def code_bits(self) -> int:
        """Bits of the wider of the two kinds of codes."""
        return max(self.inner.code_bits, self.bits)

    @property
    def codes_per_group(self) -> int:
        """The group's own codes and that of its scale."""
        return self.inner.codes_per_group + 1

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """As the inner parametrization's."""
        return self.inner.layout(shape)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The inner values, with the table in place of the scales."""
        shapes = self.inner.value_shapes(shape)
        shapes["scales"] = (1 << self.bits,)
        return shapes

    def parts(self, codes: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Take codes apart into those of the groups and those of the scales, each once.

        Args:
            codes: ``[rows, cols, codes_per_group]``.
            shape: of the dense weight.

        Returns:
            ``[rows, cols, codes_per_group - 1]``, a view, and ``[scales]``.

        Raises:
            ValueError: if groups of one scale have different codes for it.

        Example:
            >>> from pvopt import VectorCodebook
            >>> p = QuantizedScales(VectorCodebook(bits=2, group_size=2), bits=1)
            >>> codes = torch.tensor([[[3, 0], [1, 0]], [[2, 1], [0, 1]]])
            >>> p.parts(codes, (2, 4))[1]
            tensor([0, 1])
        """
        runs = codes[..., -1].reshape(self._num_scales(shape), -1)
        if not (runs == runs[:, :1]).all():
            raise ValueError("all groups of a scale must have the same code for it")
        return codes[..., :-1], runs[:, 0]

    def join(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Put codes of groups and of scales together, the inverse of :meth:`parts`.

        Args:
            codes: ``[rows, cols, codes_per_group - 1]``.
            scales: ``[scales]``.

        Returns:
            ``[rows, cols, codes_per_group]``

        Example:
            >>> from pvopt import VectorCodebook
            >>> p = QuantizedScales(VectorCodebook(bits=2, group_size=2), bits=1)
            >>> p.join(torch.tensor([[[3], [1]], [[2], [0]]]), torch.tensor([0, 1])).tolist()
            [[[3, 0], [1, 0]], [[2, 1], [0, 1]]]
        """
        per_scale = codes.shape[0] * codes.shape[1] // len(scales)
        spread = scales.repeat_interleave(per_scale).view(*codes.shape[:2], 1)
        return torch.cat([codes, spread.to(codes.dtype)], dim=2)

    def _num_scales(self, shape: tuple[int, ...]) -> int:
        """Return how many scales a weight has."""
        return math.prod(self.inner.value_shapes(shape)["scales"])

    def check_codes(self, codes: Tensor, shape: tuple[int, ...]) -> None:
        """Raise unless both kinds are in range and groups of a scale agree on it."""
        own, scales = self.parts(codes, shape)
        self.inner.check_codes(own, shape)
        low, high = int(scales.min()), int(scales.max())
        if low < 0 or high >> self.bits:
            raise ValueError(f"codes of scales must be in 0..{(1 << self.bits) - 1}, got {high}")

    def _scale_codes(self, rep: Representation) -> Tensor:
        """Return the codes of the scales, ``[scales]`` int32."""
        return rep.codes[..., -1].reshape(self._num_scales(rep.shape), -1)[:, 0].int()

    def _inner(self, rep: Representation) -> Representation:
        """Return the inner representation, its scales looked up (differentiable in the table)."""
        shape = self.inner.value_shapes(rep.shape)["scales"]
        scales = rep.values["scales"].index_select(0, self._scale_codes(rep)).view(shape)
        return Representation(
            self.inner, rep.codes[..., :-1], {**rep.values, "scales": scales}, rep.shape
        )

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """As the inner parametrization does."""
        own = None if codes is None else codes[..., :-1]
        return self.inner.decode_groups(self._inner(rep), groups, own)

    def value_gradients(self, rep: Representation, gradient: Tensor) -> dict[str, Tensor]:
        """Sum the gradients of the scales that share an entry of the table."""
        found = self.inner.value_gradients(self._inner(rep), gradient)
        column = found["scales"].reshape(-1, 1)
        total = sum_by_code(column, self._scale_codes(rep).long(), 1 << self.bits)
        return {**found, "scales": total.flatten()}

    def _with_scale(self, codes: Tensor, rep: Representation, groups: Tensor | None) -> Tensor:
        """Append the present codes of the scales to codes ``[n, k, codes_per_group - 1]``."""
        present = rep.flat_codes[:, -1] if groups is None else rep.flat_codes[groups, -1]
        spread = present.long()[:, None, None].expand(-1, codes.shape[1], 1)
        return torch.cat([codes, spread], dim=2)

    def search(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int,
        *,
        metric: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """As the inner parametrization does, the scales as they are."""
        codes = self.inner.search(
            target, self._inner(rep), groups, k, metric=metric, generator=generator
        )
        return self._with_scale(codes, rep, groups)

    def search_block(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int,
        *,
        metric: BlockMetric,
        generator: torch.Generator | None,
    ) -> Tensor:
        """As the inner parametrization does, the scales as they are."""
        codes = self.inner.search_block(
            target, self._inner(rep), groups, k, metric=metric, generator=generator
        )
        return self._with_scale(codes, rep, groups)

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Fit the inner parametrization, cluster its scales, and choose the codes anew."""
        weight, metric, generator = prepare_fit(weight, metric, generator)
        rep = self.inner.fit(weight, metric=metric, generator=generator)
        scales = rep.values["scales"]
        points = scales.view(-1, 1)
        # An error of a scale costs in proportion to the energy of what it scales.
        squares = self.inner.decode_groups(rep).square()
        energy = squares.reshape(len(points), -1).sum(1, keepdim=True) / points.square()
        usable = energy.isfinite() & (energy > 0)
        energy = torch.where(usable, energy, energy[usable].mean() if usable.any() else 1.0)
        table = kmeans(points, 1 << self.bits, weights=energy, generator=generator)
        index = nearest_centroid(points, table)
        scales.copy_(table[index].view_as(scales))
        importance = None if metric is None else self.inner.split(metric)
        found = self.inner.candidates(
            self.inner.split(weight), rep, None, metric=importance, generator=generator
        )
        dtype = code_dtype(self.code_bits)
        codes = found.codes[:, 0].view_as(rep.codes).to(dtype)
        values = {**rep.values, "scales": table.flatten().contiguous()}
        return Representation(self, self.join(codes, index), values, rep.shape)

    def stored_code_bits(self, shape: tuple[int, ...]) -> int:
        """Return the bits of both kinds, the codes of the groups filled up to whole bytes."""
        own = 8 * -(-self.inner.stored_code_bits(shape) // 8)
        return own + self.bits * self._num_scales(shape)
