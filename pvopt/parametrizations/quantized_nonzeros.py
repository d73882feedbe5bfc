"""Sparse weights whose nonzeros are quantized by another parametrization."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Parametrization
from .candidates import squared_norms
from .choices import best_sums, take_choices
from pvopt.spaces.rotation import Incoherent
from .layout import GroupLayout
from .representation import Representation, code_dtype
from .sparse_support import SparseSupport, spread
from .supports import best_supports
from .validation import prepare_fit

__all__ = ["QuantizedNonzeros"]


@dataclass(frozen=True)
class QuantizedNonzeros(Parametrization):
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
        >>> from pvopt import Binary, SparseNM
        >>> signs = QuantizedNonzeros(SparseNM(2, 4), Binary())
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
            self.inner, Incoherent | SparseSupport | QuantizedNonzeros
        )
        if bad or self.inner.values_follow_codes:
            raise TypeError(
                "inner must be a parametrization that is neither sparse nor rotated, "
                f"got {type(self.inner).__name__}"
            )

    @property
    def code_bits(self) -> int:
        """Bits of the wider of the two kinds of codes."""
        return max(self.support.code_bits, self.inner.code_bits)

    @property
    def codes_per_group(self) -> int:
        """No constant; see :meth:`code_shape`."""
        raise TypeError(f"the codes per group of {self} depend on the shape: use code_shape(shape)")

    def nonzero_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the shape of the matrix of nonzeros.

        Args:
            shape: of the dense weight.

        Returns:
            ``(rows, nonzeros of a row)``; one row where the share is of the whole tensor.

        Example:
            >>> from pvopt import Binary, Sparse
            >>> QuantizedNonzeros(Sparse(0.25), Binary()).nonzero_shape((3, 8))
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
        layout, own = self.layout(shape), self.support.code_shape(shape)
        nonzeros = math.prod(self.nonzero_shape(shape)) // layout.num_groups
        return math.prod(own) // layout.num_groups, nonzeros

    def code_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The codes of the supports and of the nonzeros of a group."""
        layout = self.layout(shape)
        inner = math.prod(self.inner.code_shape(self.nonzero_shape(shape)))
        return layout.rows, layout.cols, self._sizes(shape)[0] + inner // layout.num_groups

    def parts(self, codes: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Take codes apart into those of the support and those of the nonzeros.

        Args:
            codes: ``[rows, cols, codes_per_group]``.
            shape: of the dense weight.

        Returns:
            Codes in the shapes of the two parametrizations.

        Example:
            >>> from pvopt import Binary, SparseNM
            >>> signs = QuantizedNonzeros(SparseNM(1, 2), Binary())
            >>> codes = torch.tensor([[[1, 0], [0, 1]]])
            >>> [part.flatten().tolist() for part in signs.parts(codes, (1, 4))]
            [[1, 0], [0, 1]]
        """
        cut = self._sizes(shape)[0]
        return (
            codes[..., :cut].contiguous().view(self.support.code_shape(shape)),
            codes[..., cut:].contiguous().view(self.inner.code_shape(self.nonzero_shape(shape))),
        )

    def join(self, support: Tensor, nonzeros: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Put codes of the support and of the nonzeros together, the inverse of :meth:`parts`.

        Args:
            support: codes of the support.
            nonzeros: codes of the nonzeros.
            shape: of the dense weight.

        Returns:
            ``[rows, cols, codes_per_group]``

        Example:
            >>> from pvopt import Binary, SparseNM
            >>> signs = QuantizedNonzeros(SparseNM(1, 2), Binary())
            >>> one, two = torch.tensor([[[1], [0]]]), torch.tensor([[[0], [1]]])
            >>> signs.join(one, two, (1, 4)).tolist()
            [[[1, 0], [0, 1]]]
        """
        rows, cols, _ = self.code_shape(shape)
        dtype = code_dtype(self.code_bits)
        both = [part.reshape(rows, cols, -1).to(dtype) for part in (support, nonzeros)]
        return torch.cat(both, dim=2)

    def stored_code_bits(self, shape: tuple[int, ...]) -> int:
        """Return the bits of both kinds, the codes of the support filled up to whole bytes."""
        own = 8 * -(-self.support.stored_code_bits(shape) // 8)
        return own + self.inner.stored_code_bits(self.nonzero_shape(shape))

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The inner parametrization's, for the matrix of nonzeros."""
        return self.inner.value_shapes(self.nonzero_shape(shape))

    def check_codes(self, codes: Tensor, shape: tuple[int, ...]) -> None:
        """Raise unless codes of both kinds exist."""
        own, nonzeros = self.parts(codes, shape)
        self.support.check_codes(own, shape)
        self.inner.check_codes(nonzeros, self.nonzero_shape(shape))

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Take the support that the sparse parametrization does, fit the inner one on it."""
        weight, metric, generator = prepare_fit(weight, metric, generator)
        support = self.support.support(self.support.fit(weight, metric=metric))
        return self.represent(weight, support, metric=metric, generator=generator)

    def represent(
        self,
        weight: Tensor,
        support: Tensor,
        *,
        metric: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Fit the inner parametrization to the entries of a dense weight on a support.

        Args:
            weight: ``[*shape]``, floating.
            support: ``[*shape]`` bool, of the right number of entries in every group.
            metric: ``[*shape]`` non-negative weight of each squared error, or None for 1.
            generator: source of random draws.

        Returns:
            Codes of the support and of the nonzeros, values of the nonzeros.

        Raises:
            ValueError: if a group has another number of entries.
        """
        weight, metric, generator = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        self.layout(shape)
        mask = self.support.represent(weight, support).codes
        inner = self.nonzero_shape(shape)
        importance = None if metric is None else metric[support].view(inner)
        found = self.inner.fit(weight[support].view(inner), metric=importance, generator=generator)
        return Representation(self, self.join(mask, found.codes, shape), found.values, shape)

    def _inner(self, rep: Representation) -> Representation:
        """Return the representation of the nonzeros."""
        codes = self.parts(rep.codes, rep.shape)[1]
        return Representation(self.inner, codes, rep.values, self.nonzero_shape(rep.shape))

    def _masks(self, codes: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the supports ``[n, group_size]`` of codes ``[n, codes_per_group]``."""
        own = codes[:, : self._sizes(shape)[0]]
        per_support = self.support.code_shape(shape)[2]
        masks = self.support.masks(own.reshape(-1, per_support))
        return masks.view(len(codes), self.layout(shape).group_size)

    def _inner_groups(self, rep: Representation, groups: Tensor | None) -> Tensor | None:
        """Return the numbers of the inner groups of some groups, or None for all in order."""
        if groups is None:
            return None
        inner = self.inner.layout(self.nonzero_shape(rep.shape))
        each = inner.num_groups // rep.layout.num_groups
        return (groups[:, None] * each + torch.arange(each, device=groups.device)).flatten()

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Decode the nonzeros and put them, in order, on the supports."""
        if codes is None:
            codes = rep.flat_codes if groups is None else rep.flat_codes.index_select(0, groups)
        inner = self._inner(rep)
        cut, count = self._sizes(rep.shape)
        own = codes[:, cut:].reshape(-1, inner.codes.shape[2])
        nonzeros = self.inner.decode_groups(inner, self._inner_groups(rep, groups), own)
        return spread(nonzeros.view(len(codes), count), self._masks(codes, rep.shape))

    def value_gradients(self, rep: Representation, gradient: Tensor) -> dict[str, Tensor]:
        """Take the gradient at the nonzeros, then as the inner parametrization does."""
        groups = self.split(gradient.to(rep.dtype))
        inner = self._inner(rep)
        nonzeros = groups[self._masks(rep.flat_codes, rep.shape)].view(inner.shape)
        return self.inner.value_gradients(inner, nonzeros)

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
        """Take the supports of largest gain, and the best codes of the nonzeros on each."""
        inner = self._inner(rep)
        squares = target.square() if metric is None else metric * target.square()
        masks = list(self._best_masks(squares, rep.shape, k).unbind(1))
        if inner.layout.group_size == 1:
            levels = self._levels(target, rep.shape, inner, groups, masks[0], generator)
            gains = levels * (2 * target - levels)
            gains = gains if metric is None else gains * metric
            masks = list(self._best_masks(gains, rep.shape, k).unbind(1))
        if k == 1:  # never worse than new codes of the nonzeros where they are
            own = rep.flat_codes if groups is None else rep.flat_codes.index_select(0, groups)
            masks.append(self._masks(own, rep.shape))
        numbers = self._inner_groups(rep, groups)
        found = [
            self._on_mask(target, rep.shape, inner, numbers, k, mask, metric, generator)
            for mask in masks
        ]
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

    def _levels(
        self,
        target: Tensor,
        shape: tuple[int, ...],
        inner: Representation,
        groups: Tensor | None,
        mask: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return what every entry would become as a nonzero, if the mask were the support.

        Which nonzero it would be, and so which scale it would have, follows from the mask.
        """
        nonzeros = self._sizes(shape)[1]
        place = (mask.cumsum(1) - 1).clamp_(0, nonzeros - 1)  # [n, group_size]
        if groups is None:
            groups = torch.arange(len(target), device=target.device)
        numbers = (groups[:, None] * nonzeros + place).flatten()
        column = target.reshape(-1, 1)
        codes = self.inner.search(column, inner, numbers, 1, metric=None, generator=generator)
        return self.inner.decode_groups(inner, numbers, codes[:, 0]).view_as(target)

    def _on_mask(
        self,
        target: Tensor,
        shape: tuple[int, ...],
        inner: Representation,
        numbers: Tensor | None,
        k: int,
        mask: Tensor,
        metric: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Return codes ``[n, j, codes_per_group]`` with one support, and errors ``[n, j]``."""
        n, size = len(target), inner.layout.group_size
        own_codes, count = self._sizes(shape)
        nonzeros = target[mask].view(-1, size)
        importance = None if metric is None else metric[mask].view(-1, size)
        found = self.inner.candidates(
            nonzeros, inner, numbers, k, metric=importance, generator=generator
        )
        by_group = found.errors.view(n, count // size, found.errors.shape[1])
        chosen = best_sums(by_group, k)
        codes = take_choices(found.codes, chosen).flatten(2)  # [n, j, codes of the nonzeros]
        errors = by_group.gather(2, chosen.transpose(1, 2)).sum(1)
        removed = squared_norms(torch.where(mask, 0.0, target), metric)
        supports = mask.reshape(-1, self.support.layout(shape).group_size)
        own = self.support.codes_of(supports).view(n, 1, own_codes)
        both = torch.cat([own.expand(-1, codes.shape[1], -1), codes], dim=2)
        return both, errors + removed[:, None]
