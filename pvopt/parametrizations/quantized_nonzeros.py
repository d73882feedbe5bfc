"""Sparse weights whose nonzeros are quantized by another parametrization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout
from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.metrics.contract import Metric
from pvopt.metrics.diagonal import Diagonal, GroupDiagonal

from .choices import best_sums, take_choices
from .contract import Parametrization
from .options import FitOptions
from .preparation import prepare_fit
from .query import Query
from .registry import PARAMETRIZATIONS
from .representation import Representation
from .sparse_support import NonzerosFit, OnSupport, SparseSupport, spread
from .supports import best_supports

__all__ = ["QuantizedNonzeros"]


@PARAMETRIZATIONS.register(
    ShortForm(
        form="SPARSE+FORM",
        meaning="sparse:P% or N:M, the nonzeros in the second form",
        example="2:4+grid:2g64",
        pattern=r"(sparse[^+]*|\d+:\d+)\+(.+)",
        settings=lambda support, inner: dict(
            support=PARAMETRIZATIONS.parse(support), inner=PARAMETRIZATIONS.parse(inner)
        ),
        write=lambda p: f"{PARAMETRIZATIONS.name(p.support)}+{PARAMETRIZATIONS.name(p.inner)}",
    )
)
@dataclass(frozen=True, kw_only=True)
class QuantizedNonzeros(OnSupport):
    r"""A sparse weight, the nonzeros of which are themselves codes and values.

    .. math:: w_{g, S_g(j)} = \mathrm{decode}(z, v)_{g j}, \qquad w_{g i} = 0 \;\text{for}\;
        i \notin S_g

    The nonzeros in order, a matrix of ``[rows, nonzeros per row]`` (or one row for the whole
    tensor), are what the inner parametrization represents. A group is the smallest one that holds
    whole groups of both: its codes are those of the support, then those of its nonzeros. All of
    them move in a V step, values stay.

    The search takes the supports of largest gain and the best codes of the nonzeros on each. For
    inner parametrizations with a code per weight the gain counts the level that an entry would
    get, and the search is exact where all entries of a group share a scale; for others it is the
    squared magnitude.

    Args:
        support: :class:`pvopt.Sparse` or :class:`pvopt.SparseNM`, where the nonzeros are.
        inner: parametrization of the nonzeros, with groups inside of rows.

    Raises:
        TypeError: if ``support`` is no sparse parametrization, or ``inner`` is none, a sparse or
            a rotated one, or one whose values follow codes.
        ValueError: on use, if the inner groups do not fit the nonzeros.

    Example:
        >>> import torch
        >>> from pvopt import Binary, QuantizedNonzeros, SparseNM
        >>> signs = QuantizedNonzeros(
        ...     support=SparseNM(nonzeros=2, group_size=4), inner=Binary()
        ... )
        >>> signs.fit(torch.tensor([[1.0, -2.0, 0.1, 0.5, 0.0, 3.0, 0.2, -2.0]])).decode()
        tensor([[ 2., -2.,  0.,  0.,  0.,  2.,  0., -2.]])
        >>> signs.bits_per_weight((64, 256))  # 3/4 and 2/4, and a scale per row
        1.3125

    References:
        Frantar & Alistarh, "SparseGPT" (arXiv 2301.00774), section 3.5, on sparse and quantized
        weights.
    """

    support: SparseSupport
    inner: Parametrization

    def __post_init__(self) -> None:
        if not isinstance(self.support, SparseSupport):
            raise TypeError(
                f"support must be Sparse or SparseNM, got {type(self.support).__name__}"
            )
        bad = not isinstance(self.inner, Parametrization) or isinstance(
            self.inner, QuantizedNonzeros
        )
        if bad or self.inner.values_follow_codes:
            raise TypeError(
                "inner must be a parametrization that is not sparse, "
                f"got {type(self.inner).__name__}"
            )

    @property
    def has_zero(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.has_zero

    @property
    def scaling(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.scaling

    @property
    def value_units(self) -> Mapping[str, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the nonzeros' format."""
        return self.inner.value_units

    @property
    def stacks(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.stacks

    @property
    def usual_beam(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.usual_beam

    @property
    def sparsity(self) -> SparseSupport:
        return self.support

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        """The supports of a group, and what the inner parametrization needs for its nonzeros."""
        layout = self.layout(shape)
        found = self.support.streams(shape) | self.inner.streams(self.nonzero_shape(shape))
        return {
            name: replace(s, shape=(layout.rows, layout.cols, s.count // layout.num_groups))
            if s.moves
            else s
            for name, s in found.items()
        }

    def nonzero_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the shape of the matrix of nonzeros.

        Args:
            shape: of the dense weight.

        Returns:
            ``(rows, nonzeros of a row)``; one row where the share is of the whole tensor.

        Example:
            >>> from pvopt import Binary, QuantizedNonzeros, Sparse
            >>> p = QuantizedNonzeros(support=Sparse(density=0.25), inner=Binary())
            >>> p.nonzero_shape((3, 8))
            (3, 2)
        """
        own = self.support.layout(shape)
        return own.rows, own.cols * self.support.num_nonzeros(shape)

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """The smallest groups that hold whole groups of the support and of the nonzeros."""
        own = self.support.layout(shape)
        inner = self.inner.layout(self.nonzero_shape(shape))
        if inner.out_group != 1:
            raise ValueError(
                f"inner must have groups inside of rows, got {inner.out_group} rows a group"
            )
        count = self.support.num_nonzeros(shape)
        supports = math.lcm(count, inner.in_group) // count
        return GroupLayout(shape, own.out_group, supports * own.in_group)

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many codes of a group are the support's, and how many nonzeros it has."""
        groups = self.layout(shape).num_groups
        own = self.support.streams(shape)["support"].count
        return own // groups, math.prod(self.nonzero_shape(shape)) // groups

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The inner parametrization's, for the matrix of nonzeros."""
        return self.inner.value_shapes(self.nonzero_shape(shape))

    def check_codes(self, codes: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise unless codes of both kinds exist."""
        count = len(codes["support"]) // self.layout(shape).rows
        support, inner = self._parts(codes, shape, count)
        self.support.check_codes(support, shape)
        self.inner.check_codes(inner, self.nonzero_shape(shape))

    def _parts(
        self, codes: Mapping[str, Tensor], shape: tuple[int, ...], count: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the codes in the shapes of the two parametrizations."""

        def seen_by(streams: Mapping[str, CodeStream]) -> dict[str, Tensor]:
            return {
                name: codes[name].view(count * stream.shape[0], *stream.shape[1:])
                for name, stream in streams.items()
            }

        own = self.support.streams(shape)
        return seen_by(own), seen_by(self.inner.streams(self.nonzero_shape(shape)))

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Take the support that the sparse parametrization does, fit the inner one on it."""
        support = self.support.support(self.support.fit(weight, metric=metric))
        return self.represent(weight, support, metric=metric, options=options, generator=generator)

    def represent(
        self,
        weight: Tensor,
        support: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
        fit: NonzerosFit | None = None,
    ) -> Representation:
        """Fit the inner parametrization to the nonzeros."""
        weight, importance, generator = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        streams = self.streams(shape)
        mask = self.support.represent(weight, support).codes
        inner = self.nonzero_shape(shape)
        if fit is not None:
            found = fit(self.inner, inner)
        else:
            found = self.inner.fit(
                weight[support].view(inner),
                metric=None if importance is None else Diagonal(importance[support].view(inner)),
                options=options,
                generator=generator,
            )
        codes = {n: c.reshape(streams[n].shape) for n, c in (mask | found.codes).items()}
        return Representation(self, codes, found.values, shape)

    def _inner(self, rep: Representation) -> Representation:
        """Return the representation of the nonzeros."""
        shape = rep.inner_shape
        nonzeros = self.nonzero_shape(shape)
        codes = self._parts(rep.codes, shape, rep.count)[1]
        values = {name: rep.values[name] for name in self.inner.value_shapes(nonzeros)}
        return Representation(self.inner, codes, values, nonzeros, count=rep.count, check=False)

    def _masks(self, codes: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the supports ``[n, group_size]`` of codes ``[n, codes_per_group]``."""
        layout = self.support.layout(shape)
        width = self.support.streams(shape)["support"].shape[2]
        own = codes[:, : self._sizes(shape)[0]].reshape(-1, width)
        return self.support.masks(own, layout.group_size).view(len(codes), -1)

    def _inner_groups(self, rep: Representation, groups: Tensor | None) -> Tensor | None:
        """Return the numbers of the inner groups of some groups, or None for all in order."""
        if groups is None:
            return None
        inner = self.inner.layout(self.nonzero_shape(rep.inner_shape))
        each = inner.num_groups // rep.layout.num_groups
        return (groups[:, None] * each + torch.arange(each, device=groups.device)).flatten()

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Decode the nonzeros and put them, in order, on the supports."""
        if codes is None:
            codes = rep.group_codes(groups)
        shape, inner = rep.inner_shape, self._inner(rep)
        cut, count = self._sizes(shape)
        # Codes of one stream for all inner groups of a group, then those of the next.
        places = count // inner.layout.group_size
        parts = codes[:, cut:].split([places * width for width in inner.moving.values()], dim=1)
        own = torch.cat([part.reshape(len(codes) * places, -1) for part in parts], dim=1)
        nonzeros = self.inner.decode_groups(inner, self._inner_groups(rep, groups), own)
        return spread(nonzeros.view(len(codes), count), self._masks(codes, shape))

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take the gradients at the nonzeros, then as the inner parametrization does."""
        shape, nonzeros = rep.inner_shape, []
        for member, gradient in zip(rep.members(), gradients, strict=True):
            groups = rep.layout.split(gradient.to(rep.dtype).reshape(shape))
            mask = self._masks(member.group_codes(), shape)
            nonzeros.append(groups[mask].view(self.nonzero_shape(shape)))
        return self.inner.pull(self._inner(rep), nonzeros)

    def search(self, query: Query) -> Tensor:
        """Take the supports of largest gain, and the best codes of the nonzeros on each."""
        rep, target, weights, k = query.rep, query.target, query.weights, query.count
        shape, inner = rep.inner_shape, self._inner(rep)
        numbers = self._inner_groups(rep, query.groups)
        squares = target.square() if weights is None else weights * target.square()
        masks = list(self._best_masks(squares, shape, k).unbind(1))
        if inner.layout.group_size == 1:
            levels = self._levels(query, inner, masks[0])
            gains = levels * (2 * target - levels)
            gains = gains if weights is None else gains * weights
            masks = list(self._best_masks(gains, shape, k).unbind(1))
        if k == 1:  # never worse than new codes of the nonzeros where they are
            masks.append(self._masks(rep.group_codes(query.groups), shape))
        found = [self._on_mask(query, inner, numbers, mask) for mask in masks]
        codes = torch.cat([codes for codes, _ in found], dim=1)
        errors = torch.cat([errors for _, errors in found], dim=1)
        order = errors.argsort(dim=1, stable=True)[:, :k]
        return codes.gather(1, order[..., None].expand(-1, -1, codes.shape[2]))

    def _best_masks(self, gains: Tensor, shape: tuple[int, ...], k: int) -> Tensor:
        """Return the ``k`` supports of largest gain, ``[n, j, group_size]``."""
        size, count = self.support.layout(shape).group_size, self.support.num_nonzeros(shape)
        parts = gains.view(-1, size)
        found = best_supports(parts, count, k)  # [n * supports, j, size]
        lost = -(found * parts[:, None]).sum(2)
        supports = gains.shape[1] // size
        chosen = best_sums(lost.view(len(gains), supports, lost.shape[1]), k)
        return take_choices(found, chosen).flatten(2)

    def _levels(self, query: Query, inner: Representation, mask: Tensor) -> Tensor:
        """Return what every entry would become as a nonzero, if the mask were the support.

        Which nonzero it would be, and so which scale it would have, follows from the mask.
        """
        target, groups = query.target, query.groups
        nonzeros = self._sizes(query.rep.inner_shape)[1]
        place = (mask.cumsum(1) - 1).clamp_(0, nonzeros - 1)  # [n, group_size]
        if groups is None:
            groups = torch.arange(len(target), device=target.device)
        numbers = (groups[:, None] * nonzeros + place).flatten()
        column = query.but(
            target=target.reshape(-1, 1), rep=inner, groups=numbers, count=1, metric=None
        )
        codes = self.inner.search(column)
        return self.inner.decode_groups(inner, numbers, codes[:, 0]).view_as(target)

    def _on_mask(
        self, query: Query, inner: Representation, numbers: Tensor | None, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return codes ``[n, j, codes_per_group]`` with one support, and errors ``[n, j]``."""
        target, weights, shape = query.target, query.weights, query.rep.inner_shape
        n, size = len(target), inner.layout.group_size
        own_codes, count = self._sizes(shape)
        on = None if weights is None else GroupDiagonal(weights[mask].view(-1, size))
        found = self.inner.candidates(
            query.but(target=target[mask].view(-1, size), rep=inner, groups=numbers, metric=on)
        )
        by_group = found.errors.view(n, count // size, found.errors.shape[1])
        chosen = best_sums(by_group, query.count)
        taken = take_choices(found.codes, chosen).split(list(inner.moving.values()), dim=3)
        codes = torch.cat([part.flatten(2) for part in taken], dim=2)  # [n, j, of the nonzeros]
        errors = by_group.gather(2, chosen.transpose(1, 2)).sum(1)
        removed = torch.where(mask, 0.0, target).square()
        removed = (removed if weights is None else removed * weights).sum(1)
        supports = mask.reshape(-1, self.support.layout(shape).group_size)
        own = self.support.codes_of(supports).view(n, 1, own_codes)
        both = torch.cat([own.expand(-1, codes.shape[1], -1), codes], dim=2)
        return both, errors + removed[:, None]
