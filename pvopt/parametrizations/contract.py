"""The contract every discrete-continuous parametrization fulfils."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout
from pvopt.core.streams import CodeStream
from pvopt.metrics.contract import GroupMetric, Metric
from pvopt_kernels.ops import group_sq_norms, largest

from .options import FitOptions
from .query import Candidates, Query
from .representation import Representation
from .scheme import Scheme
from .storage import Storage

__all__ = ["Parametrization"]

# Weights of all candidates that are decoded at once: a column of a layer, which is then bound by
# calls.
_AT_ONCE = 1 << 17
# Weights whose groups are compared at once: 64 MiB of norms where each is a group.
_COMPARED = 1 << 24


class Parametrization(ABC):
    """How codes and values make the groups of a weight: the settings, without any tensor.

    A subclass is a frozen dataclass that validates itself and registers itself in
    :data:`PARAMETRIZATIONS`. It says how a weight is cut into groups, which codes and values it
    needs, how to decode, how to find near codes, and how to start; everything else follows. The
    shapes it is given are those of the weight in its space.

    Attributes:
        stacks: whether the methods work on several weights one below the other (see
            :class:`Representation`): values are then ``count`` times as long, and group ``g`` of
            weight ``w`` has number ``w * num_groups + g``.
        common_values: names of the values that all rows have in common, where all other values and
            all codes belong to rows that are independent of each other: the first index of each
            counts rows, or blocks of as many rows as a group has. Processes can then hold some rows
            each. None where rows depend on each other.
        has_levels: whether codes are scalar, so that :meth:`bracket` is defined.
        usual_beam: combinations that :meth:`search` keeps unless its options say otherwise; 1 where
            it is exact and has no use for ``SearchOptions.beam_size``.
        has_windows: whether groups are sequences, of which ``SearchOptions.window`` may move.
        couples: whether :meth:`search` understands metrics that couple the weights of a group;
            others are given the metric's diagonal, and the best of several candidates counts.
        coupled_candidates: codes that a search which does not understand such a metric offers to
            it, unless the options give a beam size.
        values_follow_codes: whether :meth:`move_` changes values too (and :meth:`follow_` what is
            kept beside them); usually a V step leaves values as they are.
        has_zero: whether a weight can be 0 while its scale is not. Otherwise a weight that is all
            zero cannot be started: its scales would be 0, and hardly move again.
        scaling: names of the values in which the decoded weight is linear: what they are multiplied
            by, it is.
        value_units: how large a relative step of one is, by name, where the size of the value
            itself says nothing about it.
        pull_sums_all: whether :meth:`pull` adds every entry of a gradient to some entry of what it
            returns, so that a gradient is finite if that is.
        usual_start: short name of the start that suits it where the layer's inputs are known, as
            ``pvopt.starts.parse_start`` reads it.
    """

    stacks: ClassVar[bool] = False
    common_values: ClassVar[tuple[str, ...] | None] = None
    has_levels: ClassVar[bool] = False
    usual_beam: ClassVar[int] = 1
    has_windows: ClassVar[bool] = False
    couples: ClassVar[bool] = False
    coupled_candidates: ClassVar[int] = 8
    values_follow_codes: ClassVar[bool] = False
    has_zero: ClassVar[bool] = True
    pull_sums_all: ClassVar[bool] = False
    scaling: ClassVar[tuple[str, ...]] = ("scales",)
    value_units: ClassVar[Mapping[str, float]] = {}
    usual_start: ClassVar[str] = "aqlm"

    @abstractmethod
    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Return how a weight of this shape is cut into groups.

        Raises:
            ValueError: if the groups do not fit; the message names sizes that do.
        """

    @abstractmethod
    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        """Return the streams of codes for a weight of this shape, by name."""

    @abstractmethod
    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the continuous tensors for a weight of this shape, by name."""

    @abstractmethod
    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Start a representation close to a dense weight, in the weight's own space.

        Args:
            weight: ``[*shape]``, floating. Values get its dtype, at least float32.
            metric: whose diagonal weighs the squared errors, or None for 1.
            options: how hard to try; None for the usual.
            generator: source of every random draw, on the weight's device; None draws from a
                fresh generator seeded with 0, so that a fit is always reproducible.

        Returns:
            Codes and values of the weight.

        Raises:
            ValueError: if the groups do not fit the shape, or the weight is not finite.
        """

    @abstractmethod
    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Decode some groups; differentiable in ``rep.values``.

        Args:
            rep: codes and values.
            groups: ``[n]`` int64 group numbers; None stands for all in order.
            codes: ``[n, codes_per_group]`` to decode in place of the representation's own.

        Returns:
            ``[n, group_size]`` in the values' dtype.
        """

    @abstractmethod
    def search(self, query: Query) -> Tensor:
        """Find codes close to each target; :meth:`candidates` measures and orders them.

        Args:
            query: what is asked.

        Returns:
            ``[n, j, codes_per_group]`` int64 with ``1 <= j <= query.count`` distinct codes of each
            group; fewer than asked for only if no more exist.
        """

    # What follows, and may be done better.

    def check_codes(  # noqa: B027 (a hook, not abstract)
        self, codes: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> None:
        """Raise a ValueError unless codes make sense together.

        Args:
            codes: in the range of their streams, by name.
            shape: of the weight.
        """

    def value_columns(self, shape: tuple[int, ...]) -> int | None:
        """Return how many neighbouring columns have values that are theirs alone.

        Column ``j`` then belongs to ``value[:, j // value_columns]`` of every value, and of every
        stream of codes that does not move, and a fit of these columns alone gives those that
        belong to them.

        Args:
            shape: of the weight.

        Returns:
            A divisor of the columns, or None where values are shared more widely.
        """
        return None

    def candidates(self, query: Query) -> Candidates:
        """Return the codes of least error for each group, values fixed: the V step's search.

        With ``count = 1`` the result is never worse than the current code, and is the current code
        where nothing is strictly better: codes move only for a gain.

        Args:
            query: what is asked.

        Returns:
            The candidates, best first; slots beyond the last existing code have error ``inf``.
        """
        count = query.count
        if query.metric is not None and query.metric.couples and not self.couples:
            # Exact for groups of one weight; otherwise the best of several that are near.
            several = query.options.beam_size or self.coupled_candidates
            wide = count if query.target.shape[1] == 1 else max(count, several)
            codes = self.search(query.but(count=wide))
        else:
            codes = self.search(query)
        if count == 1:
            return self._better(query, codes)
        errors = self.errors(query, codes)
        errors, order = errors.sort(dim=1, stable=True)
        errors, order = errors[:, :count], order[:, :count]
        codes = codes.gather(1, order[..., None].expand(-1, -1, codes.shape[2]))
        missing = count - codes.shape[1]
        if missing:
            codes = torch.cat([codes, codes[:, -1:].expand(-1, missing, -1)], dim=1)
            errors = torch.cat([errors, errors.new_full((len(errors), missing), math.inf)], dim=1)
        return Candidates(codes, errors)

    def _better(self, query: Query, codes: Tensor) -> Candidates:
        """Return the best of the codes ``[n, j, codes_per_group]`` and the present one."""
        if codes.shape[1] > 1:
            order = self.errors(query, codes).sort(dim=1, stable=True).indices[:, :1]
            codes = codes.gather(1, order[..., None].expand(-1, -1, codes.shape[2]))
        found = codes[:, 0]
        decoded = self.decode_moved(query, found)
        errors = _squared_norms(decoded - query.target, query.metric)
        present = _squared_norms(query.present - query.target, query.metric)
        keep = (present <= errors)[:, None]  # codes move only for a gain
        codes = torch.where(keep, query.current(), found)
        decoded = torch.where(keep, query.present, decoded)
        return Candidates(codes[:, None], torch.minimum(errors, present)[:, None], decoded)

    def errors(self, query: Query, codes: Tensor) -> Tensor:
        """Return the exact squared errors ``[n, j]`` of codes ``[n, j, codes_per_group]``."""
        n, count, _ = codes.shape
        target, metric = query.target, query.metric
        if count > 1 and target.numel() * count <= _AT_ONCE:
            every = torch.arange(n, device=target.device).repeat_interleave(count)
            groups = every if query.groups is None else query.groups.index_select(0, every)
            wide = query.but(target=target.index_select(0, every), groups=groups)
            found = self.decode_moved(wide, codes.flatten(0, 1)).view(n, count, -1)
            return _squared_norms(found - target[:, None], metric)
        columns = codes.unbind(1)
        found = [_squared_norms(self.decode_moved(query, c) - target, metric) for c in columns]
        return torch.stack(found, dim=1)

    def bracket(self, query: Query) -> Candidates:
        """Return the two levels around each target: the nearest at or below, and at or above.

        Defined for scalar codes only (unbiased stochastic rounding needs it). Targets beyond the
        outermost level get that level twice.

        Args:
            query: targets ``[n, 1]``; its metric does not matter.

        Returns:
            The candidate below, and the one above.

        Raises:
            TypeError: where one code stands for several weights.
        """
        raise TypeError(
            f"{type(self).__name__} has no scalar levels to bracket a target with; "
            "SharedValues, UniformGrid, Binary and Ternary have"
        )

    def decode_moved(self, query: Query, codes: Tensor) -> Tensor:
        """Return what groups decode to once they have taken new codes.

        Values stay as they are, unless a value belongs to one group alone and means something
        else under the new code: a nonzero of a sparse weight takes the target's value when its
        place in the support changes.

        Args:
            query: the groups and what they move towards.
            codes: ``[n, codes_per_group]`` the new codes.

        Returns:
            ``[n, group_size]``.
        """
        return self.decode_groups(query.rep, query.groups, codes)

    def move_(
        self, rep: Representation, groups: Tensor | None, codes: Tensor, decoded: Tensor
    ) -> None:
        """Let groups take new codes, in place, so that they decode to what they are to.

        Args:
            rep: codes and values.
            groups: ``[n]`` distinct group numbers, or None for all in order.
            codes: ``[n, codes_per_group]`` the new codes.
            decoded: ``[n, group_size]`` of :meth:`decode_moved`.
        """
        rep.write_codes_(groups, codes)

    def follow_(  # noqa: B027 (a hook, not abstract)
        self, name: str, kept: Tensor, before: Mapping[str, Tensor], rep: Representation
    ) -> None:
        """Let what is kept beside a value (an optimizer's moment) follow it through a V step.

        Called, if ``values_follow_codes``, after groups took new codes. Entries whose value is
        a new one become 0, as they start.

        Args:
            name: of the value.
            kept: of the value's shape, changed in place.
            before: the codes before the step, by stream.
            rep: codes and values after it.
        """

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Pull dense gradients back to the values, in the space of the groups.

        Args:
            rep: codes and values; its space does not matter.
            gradients: ``[*inner_shape]`` of each weight.

        Returns:
            One gradient for each value of the parametrization, of its shape and dtype.
        """
        parts = []
        with torch.enable_grad():
            for member, gradient in zip(rep.members(), gradients, strict=True):
                names = self.value_shapes(rep.inner_shape)
                leaves = {name: member.values[name].detach().requires_grad_() for name in names}
                codes, shape = self._own(member), rep.inner_shape
                own = Representation(self, codes, leaves, shape, check=False)
                weight = member.layout.merge(self.decode_groups(own))
                found = torch.autograd.grad(
                    weight, list(leaves.values()), gradient.to(weight.dtype), materialize_grads=True
                )
                parts.append(dict(zip(leaves, found, strict=True)))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _own(self, rep: Representation) -> dict[str, Tensor]:
        """Return the codes of the parametrization, without those of the space."""
        return {name: rep.codes[name] for name in self.streams(rep.inner_shape)}

    def change_norms(self, rep: Representation, targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return how far each group is from its target, and how large each weight is.

        Args:
            rep: codes and values; its space does not matter.
            targets: ``[*inner_shape]`` for each weight.

        Returns:
            Squared norms of the differences ``[count, num_groups]`` and of the weights ``[count]``.
        """
        changes, norms = [], []
        for member, target in zip(rep.members(), targets, strict=True):
            decoded = self.decode_groups(member)
            goals = rep.layout.split(target.to(decoded.dtype))
            changes.append(group_sq_norms(goals, decoded, in_group=decoded.shape[1]))
            norms.append(decoded.square().sum())
        return torch.stack(changes), torch.stack(norms)

    def largest_changes(
        self, rep: Representation, targets: Sequence[Tensor], count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return which groups are the farthest from their targets.

        Args:
            rep: codes and values; its space does not matter.
            targets: ``[*inner_shape]`` for each weight.
            count: how many groups of each weight.

        Returns:
            Norms of the differences ``[rep.count, count]``, the largest first, the numbers of the
            groups, and the squared norms of the weights ``[rep.count]``.
        """
        found, start = [], 0
        for part in rep.pieces(max(1, _COMPARED // math.prod(rep.inner_shape))):
            changes, norms = self.change_norms(part, targets[start : start + part.count])
            found.append((*largest(changes.sqrt_(), count), norms))
            start += part.count
        if len(found) == 1:
            return found[0]
        values, groups, norms = (torch.cat(parts) for parts in zip(*found, strict=True))
        return values, groups, norms

    def write_into(self, rep: Representation, weights: Sequence[Tensor]) -> None:
        """Write the decoded weights.

        Args:
            rep: codes and values; its space does not matter.
            weights: ``[*inner_shape]`` for each weight, written in place, of any dtype.
        """
        for member, weight in zip(rep.members(), weights, strict=True):
            weight.copy_(rep.layout.merge(self.decode_groups(member)))

    def storage(self, shape: tuple[int, int]) -> Storage:
        """Return how a layer keeps codes of a matrix of this shape, and multiplies by them."""
        return Storage(self, shape)

    def bits_per_weight(self, shape: tuple[int, ...], *, value_bits: int = 16) -> float:
        """Return the true storage per weight in the weight's own space.

        See :meth:`Scheme.bits_per_weight`.
        """
        return Scheme(self).bits_per_weight(shape, value_bits=value_bits)


def _squared_norms(vectors: Tensor, metric: GroupMetric | None) -> Tensor:
    return vectors.square_().sum(-1) if metric is None else metric.squared_norms(vectors)
