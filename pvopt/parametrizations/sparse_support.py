"""What sparse weights share: decoding, the choice of the support, values that follow it."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .contract import Parametrization
from .representation import Representation, code_dtype
from .supports import best_supports
from .validation import prepare_fit

__all__ = ["SparseSupport", "spread"]


class SparseSupport(Parametrization):
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

    values_follow_codes: ClassVar[bool] = True

    @abstractmethod
    def num_nonzeros(self, shape: tuple[int, ...]) -> int:
        """Return the number of nonzeros in each group of a weight of this shape."""

    @abstractmethod
    def masks(self, codes: Tensor) -> Tensor:
        """Return the supports ``[n, group_size]`` of codes ``[n, codes_per_group]``."""

    @abstractmethod
    def codes_of(self, masks: Tensor) -> Tensor:
        """Return the codes ``[..., codes_per_group]``, int64, of supports ``[..., group_size]``."""

    def support(self, rep: Representation) -> Tensor:
        """Return where the nonzeros are, ``[*shape]`` bool."""
        return self.layout(rep.shape).merge(self.masks(rep.flat_codes))

    def represent(self, weight: Tensor, support: Tensor) -> Representation:
        """Put the entries of a dense weight on a support into a representation.

        Args:
            weight: ``[*shape]``, at least float32.
            support: ``[*shape]`` bool, of the right number of entries in every group.

        Returns:
            Codes of the support, values of the weight on it.

        Raises:
            ValueError: if a group has another number of entries.
        """
        shape = tuple(weight.shape)
        layout, count = self.layout(shape), self.num_nonzeros(shape)
        masks = layout.split(support)
        if not bool((masks.sum(1) == count).all()):
            raise ValueError(f"support must have {count} entries in every group of {self}")
        values = layout.split(weight)[masks].view(self.value_shapes(shape)["values"])
        codes = self.codes_of(masks).view(self.code_shape(shape)).to(code_dtype(self.code_bits))
        return Representation(self, codes, {"values": values}, shape)

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Keep the entries of largest magnitude, or of largest ``d w^2`` in a metric."""
        weight, metric, _ = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        layout = self.layout(shape)
        gains = weight.abs() if metric is None else metric * weight.square()
        masks = best_supports(layout.split(gains), self.num_nonzeros(shape), 1)[:, 0]
        return self.represent(weight, layout.merge(masks))

    def _of(self, rep: Representation, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return codes ``[n, codes_per_group]`` and nonzeros ``[n, count]`` of some groups."""
        values = rep.values["values"].view(rep.layout.num_groups, -1)
        if groups is None:
            return rep.flat_codes, values
        return rep.flat_codes.index_select(0, groups), values.index_select(0, groups)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Put the nonzeros, in order, on the supports."""
        own, values = self._of(rep, groups)
        return spread(values, self.masks(own if codes is None else codes))

    def decode_moved(
        self, target: Tensor, rep: Representation, groups: Tensor | None, codes: Tensor
    ) -> Tensor:
        """Keep the values of entries that stay, take the target's for those that enter."""
        own, values = self._of(rep, groups)
        before = self.masks(own)
        moved = torch.where(before, spread(values, before), target)
        return torch.where(self.masks(codes), moved, 0.0)

    def move_(
        self, target: Tensor, rep: Representation, groups: Tensor | None, codes: Tensor
    ) -> None:
        """Write the codes, and the nonzeros as they are after the move."""
        moved = self.decode_moved(target, rep, groups, codes)
        super().move_(target, rep, groups, codes)
        values = rep.values["values"].view(rep.layout.num_groups, -1)
        nonzeros = moved[self.masks(codes)].view(-1, values.shape[1])
        if groups is None:
            values.copy_(nonzeros)
        else:
            values[groups] = nonzeros

    def carry_(self, name: str, tensor: Tensor, codes: Tensor, rep: Representation) -> None:
        """Move each nonzero's entry along with it; entries of new nonzeros are 0."""
        before = codes.view_as(rep.flat_codes)
        groups = (before != rep.flat_codes).any(1).nonzero()[:, 0]
        flat = tensor.view(rep.layout.num_groups, -1)
        dense = spread(flat[groups], self.masks(before[groups]))
        flat[groups] = dense[self.masks(rep.flat_codes[groups])].view(-1, flat.shape[1])

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
        """Keep the entries of largest gain; exact, and so are the further candidates."""
        own, values = self._of(rep, groups)
        masks = self.masks(own)
        current = spread(values, masks)
        gains = torch.where(masks, current * (2 * target - current), target.square())
        if metric is not None:
            gains = gains * metric
        return self.codes_of(best_supports(gains, values.shape[1], k))

    def value_gradients(self, rep: Representation, gradient: Tensor) -> dict[str, Tensor]:
        """Take the gradient at the nonzeros."""
        groups = self.split(gradient.to(rep.dtype))
        nonzeros = groups[self.masks(rep.flat_codes)]
        return {"values": nonzeros.view_as(rep.values["values"])}


def spread(values: Tensor, masks: Tensor) -> Tensor:
    """Put values ``[n, count]`` in order where masks ``[n, group_size]`` are set, 0 elsewhere."""
    zeros = values.new_zeros(masks.shape)
    return zeros.masked_scatter(masks, values)
