"""What sparse weights share: decoding, the choice of the support, values that follow it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pvopt.metrics.contract import Metric

from .contract import Parametrization
from .options import FitOptions
from .preparation import prepare_fit
from .query import Query
from .representation import Representation
from .supports import best_supports

__all__ = ["NonzerosFit", "OnSupport", "SparseSupport", "spread"]

#: Represents nonzeros, row after row, by their parametrization as a matrix of some shape.
NonzerosFit = Callable[[Parametrization, tuple[int, int]], Representation]


class OnSupport(Parametrization):
    """A sparse parametrization: it can represent any weight on a support that a start chooses."""

    @property
    @abstractmethod
    def sparsity(self) -> SparseSupport:
        """Where nonzeros may be, and how many in each group."""

    @abstractmethod
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
        """Put the entries of a dense weight on a support into a representation.

        Args:
            weight: ``[*shape]``, floating, at least float32.
            support: ``[*shape]`` bool, of the right number of entries in every group.
            metric: whose diagonal weighs the squared errors of the nonzeros, or None for 1.
            options: how hard a fit of the nonzeros tries.
            generator: source of random draws.
            fit: of nonzeros that are not free; None for that of their parametrization.

        Returns:
            Codes of the support, codes and values of the nonzeros.

        Raises:
            ValueError: if a group has another number of entries.
        """


class SparseSupport(OnSupport):
    r"""A fixed number of nonzeros in every group; codes say where, values how large they are.

    .. math:: w_{g, S_g(j)} = v_{g j}, \qquad w_{g i} = 0 \;\text{for}\; i \notin S_g

    A P step moves the nonzeros. A V step chooses the support for a target t: entries that stay
    keep their value v, entries that enter take the target's, so that keeping entry i lowers the
    squared error by

    .. math:: d_i (t_i^2 - (t_i - v_i)^2) \;\text{if it is in the support},
        \qquad d_i\, t_i^2 \;\text{otherwise}

    and the best support holds the largest of these. With :math:`v_i = t_i` these are the largest
    magnitudes: iterative hard thresholding.
    """

    stacks = True
    values_follow_codes = True
    scaling = ("values",)
    usual_start = "iterative-obs"

    @property
    def sparsity(self) -> SparseSupport:
        return self

    @abstractmethod
    def num_nonzeros(self, shape: tuple[int, ...]) -> int:
        """Return the number of nonzeros in each group of a weight of this shape."""

    @abstractmethod
    def masks(self, codes: Tensor, group_size: int) -> Tensor:
        """Return the supports ``[n, group_size]`` of codes ``[n, codes_per_group]``."""

    @abstractmethod
    def codes_of(self, masks: Tensor) -> Tensor:
        """Return the codes ``[..., codes_per_group]``, int64, of supports ``[..., group_size]``."""

    def support(self, rep: Representation) -> Tensor:
        """Return where the nonzeros are, ``[*shape]`` bool."""
        layout = rep.layout
        return layout.merge(self.masks(rep.group_codes(), layout.group_size))

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
        """Take the nonzeros as they are, whatever the metric."""
        shape = tuple(weight.shape)
        layout, count = self.layout(shape), self.num_nonzeros(shape)
        masks = layout.split(support)
        if not bool((masks.sum(1) == count).all()):
            raise ValueError(f"support must have {count} entries in every group of {self}")
        values = layout.split(weight)[masks].view(self.value_shapes(shape)["values"])
        stream = self.streams(shape)["support"]
        codes = self.codes_of(masks).view(stream.shape).to(stream.dtype)
        return Representation(self, {"support": codes}, {"values": values}, shape)

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Keep the entries of largest magnitude, or of largest ``d w^2`` in a metric."""
        weight, importance, _ = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        layout = self.layout(shape)
        gains = weight.abs() if importance is None else importance * weight.square()
        masks = best_supports(layout.split(gains), self.num_nonzeros(shape), 1)[:, 0]
        return self.represent(weight, layout.merge(masks))

    def _values(self, rep: Representation, groups: Tensor | None) -> Tensor:
        """Return the nonzeros ``[n, count]`` of some groups."""
        values = rep.values["values"].view(rep.num_groups, -1)
        return values if groups is None else values.index_select(0, groups)

    def _present(self, rep: Representation, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the supports ``[n, group_size]`` of some groups, and their dense entries."""
        masks = self.masks(rep.group_codes(groups), rep.layout.group_size)
        return masks, spread(self._values(rep, groups), masks)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Put the nonzeros, in order, on the supports."""
        codes = rep.group_codes(groups) if codes is None else codes
        return spread(self._values(rep, groups), self.masks(codes, rep.layout.group_size))

    def decode_moved(self, query: Query, codes: Tensor) -> Tensor:
        """Keep the values of entries that stay, take the target's for those that enter."""
        before, present = self._present(query.rep, query.groups)
        moved = torch.where(before, present, query.target)
        return torch.where(self.masks(codes, before.shape[1]), moved, 0.0)

    def move_(
        self, rep: Representation, groups: Tensor | None, codes: Tensor, decoded: Tensor
    ) -> None:
        """Write the codes, and the nonzeros as they are after the move."""
        rep.write_codes_(groups, codes)
        values = rep.values["values"].view(rep.num_groups, -1)
        nonzeros = decoded[self.masks(codes, rep.layout.group_size)].view(-1, values.shape[1])
        if groups is None:
            values.copy_(nonzeros)
        else:
            values.index_copy_(0, groups, nonzeros.to(values.dtype))

    def follow_(
        self, name: str, kept: Tensor, before: Mapping[str, Tensor], rep: Representation
    ) -> None:
        """Move each nonzero's entry along with it; entries of new nonzeros are 0."""
        size = rep.layout.group_size
        own, now = before["support"].view(rep.num_groups, -1), rep.group_codes()
        flat = kept.view(rep.num_groups, -1)
        dense = spread(flat, self.masks(own, size))
        flat.copy_(dense[self.masks(now, size)].view_as(flat))

    def search(self, query: Query) -> Tensor:
        """Keep the entries of largest gain; exact, and so are the further candidates."""
        masks, current = self._present(query.rep, query.groups)
        target, weights = query.target, query.weights
        gains = torch.where(masks, current * (2 * target - current), target.square())
        if weights is not None:
            gains = gains * weights
        count = self._values(query.rep, query.groups).shape[1]
        return self.codes_of(best_supports(gains, count, query.count))

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take the gradients at the nonzeros."""
        parts = []
        for member, gradient in zip(rep.members(), gradients, strict=True):
            groups = rep.layout.split(gradient.to(rep.dtype).reshape(rep.inner_shape))
            nonzeros = groups[self.masks(member.group_codes(), groups.shape[1])]
            parts.append(nonzeros.view_as(member.values["values"]))
        return {"values": torch.cat(parts)}


def spread(values: Tensor, masks: Tensor) -> Tensor:
    """Put values ``[n, count]`` in order where masks ``[n, group_size]`` are set, 0 elsewhere."""
    zeros = values.new_zeros(masks.shape)
    return zeros.masked_scatter(masks, values)
