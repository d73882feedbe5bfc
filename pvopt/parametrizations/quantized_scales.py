"""Scales of a codebook format as codes of a small shared table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.core.layout import GroupLayout
from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_integer
from pvopt.fits.scalars import nearest_scalar, scalar_kmeans
from pvopt.metrics.contract import Metric
from pvopt.metrics.diagonal import GroupDiagonal
from pvopt_kernels import sum_by_code

from .codebooks import Codebooks
from .contract import Parametrization
from .e8p import E8P
from .options import FitOptions, SearchOptions
from .preparation import prepare_fit
from .query import Query
from .registry import PARAMETRIZATIONS
from .representation import Representation

__all__ = ["QuantizedScales"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="qB+FORM",
        meaning="codebooks or lattice points with scales of B bits",
        example="q6+2x8g8/64",
        pattern=r"q(\d+)\+(.+)",
        settings=lambda bits, inner: dict(inner=PARAMETRIZATIONS.parse(inner), bits=int(bits)),
        write=lambda p: f"q{p.bits}+{PARAMETRIZATIONS.name(p.inner)}",
    )
)
@dataclass(frozen=True, kw_only=True)
class QuantizedScales(Parametrization):
    r"""Codebooks whose scales are themselves codes of a table of ``2**bits`` scales.

    .. math:: s_i = T[q_i], \qquad q_i \in \{0, \dots, 2^b - 1\}

    Small groups of inputs with a scale of their own follow the weight better, but 16 bits for each
    64 weights are a quarter bit per weight; 6 bits are less than a tenth, at the same error. The
    table is a value, tuned like any other. The scales' codes are set by the fit and stay: the V
    step moves those of the groups only.

    Args:
        inner: :class:`pvopt.VectorCodebook`, :class:`pvopt.AdditiveCodebooks` or
            :class:`pvopt.E8P`.
        bits: of a scale's code, 1 to 8.

    Raises:
        TypeError: if ``inner`` is of another class or ``bits`` not an integer.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> from pvopt import E8P, QuantizedScales
        >>> fine = E8P(bits=2, scale_group=64)
        >>> for p in (fine, QuantizedScales(inner=fine, bits=6)):
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
    def stacks(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.stacks

    @property
    def has_zero(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.has_zero

    @property
    def usual_beam(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.usual_beam

    @property
    def couples(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.couples

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        scales = CodeStream(shape=(self._num_scales(shape),), num_codes=1 << self.bits, moves=False)
        return {**self.inner.streams(shape), "scales": scales}

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        return self.inner.layout(shape)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The inner values, with the table in place of the scales."""
        return {**self.inner.value_shapes(shape), "scales": (1 << self.bits,)}

    def _num_scales(self, shape: tuple[int, ...]) -> int:
        """Return how many scales a weight has."""
        return math.prod(self.inner.value_shapes(shape)["scales"])

    def _inner(self, rep: Representation) -> Representation:
        """Return the inner representation, its scales looked up (differentiable in the table)."""
        shape, count = rep.inner_shape, rep.count
        tables = rep.values["scales"].view(count, -1)
        scales = tables.gather(1, rep.codes["scales"].view(count, -1).long())
        rows, *rest = self.inner.value_shapes(shape)["scales"]
        names = self.inner.value_shapes(shape)
        values = {name: rep.values[name] for name in names if name != "scales"}
        values = {**values, "scales": scales.view(count * rows, *rest)}
        codes = {name: rep.codes[name] for name in self.inner.streams(shape)}
        return Representation(self.inner, codes, values, shape, count=count, check=False)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """As the inner parametrization does."""
        return self.inner.decode_groups(self._inner(rep), groups, codes)

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Sum the gradients of the scales that share an entry of the table."""
        found = self.inner.pull(self._inner(rep), gradients)
        count, size = rep.count, 1 << self.bits
        # The tables of several weights are one table, each with entries of its own.
        first = torch.arange(count, device=rep.device)[:, None] * size
        index = (rep.codes["scales"].view(count, -1).long() + first).flatten()
        total = sum_by_code(found["scales"].reshape(-1, 1), index, count * size)
        return {**found, "scales": total.flatten()}

    def search(self, query: Query) -> Tensor:
        """As the inner parametrization does, the scales as they are."""
        return self.inner.search(query.but(rep=self._inner(query.rep)))

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Fit the inner parametrization, cluster its scales, and choose the codes anew."""
        weight, importance, generator = prepare_fit(weight, metric, generator)
        rep = self.inner.fit(weight, metric=metric, options=options, generator=generator)
        scales = rep.values["scales"]
        points = scales.view(-1, 1)
        # An error of a scale costs in proportion to the energy of what it scales.
        squares = self.inner.decode_groups(rep).square()
        energy = squares.reshape(len(points), -1).sum(1, keepdim=True) / points.square()
        usable = energy.isfinite() & (energy > 0)
        energy = torch.where(usable, energy, energy[usable].mean() if usable.any() else 1.0)
        table = scalar_kmeans(
            points[:, 0], 1 << self.bits, weights=energy[:, 0], generator=generator
        )
        index = nearest_scalar(points[:, 0], table)
        scales.copy_(table[index].view_as(scales))
        layout = rep.layout
        weights = None if importance is None else GroupDiagonal(layout.split(importance))
        query = Query(
            target=layout.split(weight),
            rep=rep,
            metric=weights,
            options=SearchOptions(beam_size=None if options is None else options.beam_size),
            draws=Draws.of(generator, weight.device),
        )
        rep.write_codes_(None, self.inner.candidates(query).codes[:, 0])
        stream = self.streams(tuple(weight.shape))["scales"]
        codes = {**rep.codes, "scales": index.to(stream.dtype)}
        values = {**rep.values, "scales": table}
        return Representation(self, codes, values, rep.shape)
