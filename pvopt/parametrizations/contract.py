"""The contract every discrete-continuous parametrization fulfils."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.metrics.block import BlockMetric
from .candidates import Candidates, squared_norms
from .layout import GroupLayout
from .representation import Representation

__all__ = ["Parametrization"]

# How many codes a search that knows diagonal metrics only offers to a full one.
_BLOCK_CANDIDATES = 8
# Weights of all candidates that are decoded at once: a column of a layer, which is then bound by
# calls (eight candidates of 1536 groups of E8P: 0.5 ms at once, 1.4 one after the other).
_AT_ONCE = 1 << 17


class Parametrization(ABC):
    """How codes and values make a weight: the settings, without any tensor.

    A subclass is a frozen dataclass that validates itself. It defines the layout of the groups,
    the values it needs, how to decode, how to find the nearest codes, and how to start.

    Attributes:
        values_follow_codes: whether :meth:`move_` changes values too (and :meth:`carry_` what is
            kept beside them); usually a V step leaves values as they are.
    """

    values_follow_codes: ClassVar[bool] = False

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of one code; codes are integers in ``0 .. num_codes - 1``."""

    @property
    def num_codes(self) -> int:
        """Number of different codes, at most ``2**code_bits``."""
        return 1 << self.code_bits

    @property
    def codes_per_word(self) -> int:
        """Codes that are stored together, as the digits of one number of base ``num_codes``.

        More than 1 saves where ``num_codes`` is no power of two: five codes of three kinds fit a
        byte (3^5 = 243), that is 1.6 bits each in place of 2.
        """
        return 1

    @property
    def codes_per_group(self) -> int:
        """Number of codes of one group."""
        return 1

    def code_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape of the codes, ``(rows, cols, codes_per_group)``, of a weight's shape."""
        layout = self.layout(shape)
        return layout.rows, layout.cols, self.codes_per_group

    def check_codes(self, codes: Tensor, shape: tuple[int, ...]) -> None:
        """Raise unless every code tuple is one that exists.

        Args:
            codes: ``[rows, cols, codes_per_group]`` integers.
            shape: of the dense weight.

        Raises:
            ValueError: if a code is out of range; the message says which are allowed.
        """
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.num_codes:
            raise ValueError(f"codes must be in 0..{self.num_codes - 1}, got {low}..{high}")

    @abstractmethod
    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Return how a weight of this shape is cut into groups.

        Raises:
            ValueError: if the groups do not fit; the message names sizes that do.
        """

    def split(self, weight: Tensor) -> Tensor:
        """Map a dense weight to its groups.

        Linear, and an isometry: errors and norms of groups are those of weights. Here it cuts the
        weight by the layout; a parametrization whose groups live in a rotated space rotates first.

        Args:
            weight: ``[*shape]``, any floating dtype.

        Returns:
            ``[num_groups, group_size]``; may share the weight's memory.
        """
        return self.layout(tuple(weight.shape)).split(weight)

    def merge(self, groups: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Map groups back to a dense weight; the inverse and the adjoint of :meth:`split`.

        Args:
            groups: ``[num_groups, group_size]``.
            shape: of the dense weight.

        Returns:
            ``[*shape]``; may share the groups' memory.
        """
        return self.layout(shape).merge(groups)

    def split_diagonal(self, metric: Tensor) -> Tensor:
        """Map a diagonal metric of the weights to the diagonal of that metric of their groups.

        Args:
            metric: ``[*shape]``, the weight of each squared error.

        Returns:
            ``[num_groups, group_size]``; may share the metric's memory.

        Raises:
            TypeError: where groups live in another space and the subclass does not say what
                becomes of a metric there.
        """
        self._require_own_space("split_diagonal")
        return self.layout(tuple(metric.shape)).split(metric)

    def split_hessian(self, hessian: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Map a metric that every row of the weight shares to the space of the groups.

        Args:
            hessian: ``[columns, columns]`` symmetric, as ``X'X`` of a layer's inputs.
            shape: of the dense weight.

        Returns:
            ``[columns, columns]``, the metric of every row of the layout.

        Raises:
            TypeError: as :meth:`split_diagonal`.
        """
        self._require_own_space("split_hessian")
        return hessian

    def _require_own_space(self, method: str) -> None:
        """Raise if split is more than cutting, so that a metric would have to follow it."""
        if type(self).split is not Parametrization.split:
            raise TypeError(f"{type(self).__name__} has no metric: it does not define {method}")

    @abstractmethod
    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the continuous tensors for a weight of this shape, by name."""

    def value_columns(self, shape: tuple[int, ...]) -> int | None:
        """Return how many neighbouring columns have values that are theirs alone.

        Column ``j`` then belongs to ``value[:, j // value_columns]`` of every value, and a fit of
        these columns alone gives the values that belong to them.

        Args:
            shape: of the dense weight.

        Returns:
            A divisor of the columns, or None where values are shared more widely.
        """
        return None

    @abstractmethod
    def fit(
        self, weight: Tensor, *, metric: Tensor | None = None, generator: torch.Generator | None
    ) -> Representation:
        """Start a representation close to a dense weight, without data.

        Args:
            weight: ``[*shape]``, floating. Values get its dtype, at least float32.
            metric: ``[*shape]`` non-negative weight of each squared error, or None for 1.
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
        """Find codes close to each target; :meth:`candidates` measures and orders them.

        Args: as :meth:`candidates`.

        Returns:
            ``[n, j, codes_per_group]`` int64 with ``1 <= j <= k`` distinct codes per group;
            ``j < k`` only if no more codes exist.
        """

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
        """Find codes close to each target in a full metric of the group.

        Here: the best of several candidates that are close in the metric's diagonal, exact for
        groups of one weight. Codebooks search in the metric itself.

        Args: as :meth:`candidates`.

        Returns:
            As :meth:`search`.
        """
        diagonal = metric.diagonal(target)
        single = target.shape[1] == 1
        wide = k if single else max(k, _BLOCK_CANDIDATES)
        codes = self.search(target, rep, groups, wide, metric=diagonal, generator=generator)
        if single:
            return codes
        order = self._errors(target, rep, groups, codes, metric).sort(dim=1, stable=True).indices
        return codes.gather(1, order[:, :k, None].expand(-1, -1, codes.shape[2]))

    def candidates(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int = 1,
        *,
        metric: Tensor | BlockMetric | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        r"""Return the ``k`` codes of least error for each group, values fixed: the V step's search.

        .. math:: z_g = \arg\min_z \sum_i d_{gi} (t_{gi} - \mathrm{decode}(z, v)_{gi})^2

        With ``k = 1`` the result is never worse than the current code, and is the current code
        where nothing is strictly better: codes move only for a gain.

        Args:
            target: ``[n, group_size]`` the weights to come close to.
            rep: current codes and values.
            groups: ``[n]`` int64 group numbers of the targets; None stands for all in order.
            k: how many distinct candidates.
            metric: ``[n, group_size]`` non-negative ``d``; or a full matrix for the weights of a
                group in place of ``diag(d)``, the same for all groups; or None for 1.
            generator: source of random draws (for searches that make any).

        Returns:
            The candidates, best first; slots beyond the last existing code have error ``inf``.

        Raises:
            ValueError: if ``k`` is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        target = target.to(rep.dtype)
        if isinstance(metric, BlockMetric):
            codes = self.search_block(target, rep, groups, k, metric=metric, generator=generator)
        else:
            codes = self.search(target, rep, groups, k, metric=metric, generator=generator)
        errors = self._errors(target, rep, groups, codes, metric)
        if k == 1:
            flat = rep.flat_codes if groups is None else rep.flat_codes.index_select(0, groups)
            current = flat.long()[:, None]  # [n, 1, codes_per_group]
            current_errors = self._errors(target, rep, groups, current, metric)
            keep = current_errors <= errors  # [n, 1]
            codes = torch.where(keep[..., None], current, codes)
            return Candidates(codes, torch.minimum(errors, current_errors))
        errors, order = errors.sort(dim=1, stable=True)
        codes = codes.gather(1, order[..., None].expand_as(codes))
        missing = k - codes.shape[1]
        if missing:
            codes = torch.cat([codes, codes[:, -1:].expand(-1, missing, -1)], dim=1)
            errors = torch.cat([errors, errors.new_full((len(errors), missing), math.inf)], dim=1)
        return Candidates(codes, errors)

    def _errors(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        codes: Tensor,
        metric: Tensor | BlockMetric | None,
    ) -> Tensor:
        """Return the exact squared errors ``[n, j]`` of codes ``[n, j, codes_per_group]``."""
        n, count, _ = codes.shape
        if count > 1 and target.numel() * count <= _AT_ONCE:
            every = torch.arange(n, device=target.device).repeat_interleave(count)
            goals = target.index_select(0, every)  # [n * j, group_size]
            chosen = every if groups is None else groups.index_select(0, every)
            if isinstance(metric, Tensor):
                metric = metric.index_select(0, every)
            decoded = self.decode_moved(goals, rep, chosen, codes.flatten(0, 1))
            return squared_norms(decoded - goals, metric).view(n, count)
        columns = []
        for column in codes.unbind(1):
            difference = self.decode_moved(target, rep, groups, column) - target
            columns.append(squared_norms(difference, metric))
        return torch.stack(columns, dim=1)

    def decode_moved(
        self, target: Tensor, rep: Representation, groups: Tensor | None, codes: Tensor
    ) -> Tensor:
        """Return what groups decode to once they have taken new codes (see :meth:`move_`).

        Args:
            target: ``[n, group_size]`` what the groups move towards.
            rep: current codes and values.
            groups: ``[n]`` int64 group numbers, or None for all in order.
            codes: ``[n, codes_per_group]`` the new codes.

        Returns:
            ``[n, group_size]``; where values stay as they are, ``decode_groups`` of the codes.
        """
        return self.decode_groups(rep, groups, codes)

    def move_(
        self, target: Tensor, rep: Representation, groups: Tensor | None, codes: Tensor
    ) -> None:
        """Let groups take new codes, in place.

        Values stay as they are, unless a value belongs to one group alone and means something
        else under the new code: a nonzero of a sparse weight takes the target's value when its
        place in the support changes. After it, the groups decode to :meth:`decode_moved`.

        Args: as :meth:`decode_moved`.
        """
        new = codes.to(rep.codes.dtype)
        if groups is None:
            rep.flat_codes.copy_(new)
        else:
            rep.flat_codes.index_copy_(0, groups, new)

    def carry_(  # noqa: B027 (a hook, not abstract)
        self, name: str, tensor: Tensor, codes: Tensor, rep: Representation
    ) -> None:
        """Let what is kept beside a value (an optimizer's moment) follow it through a V step.

        Called, if ``values_follow_codes``, after groups took new codes. Entries whose value is
        a new one become 0, as they start.

        Args:
            name: of the value.
            tensor: of the value's shape, changed in place.
            codes: of ``rep.codes``' shape, the codes before the step.
            rep: codes and values after it.
        """

    def decode(self, rep: Representation) -> Tensor:
        """Decode the whole weight; differentiable in ``rep.values``.

        Returns:
            ``[*shape]`` in the values' dtype.
        """
        return self.merge(self.decode_groups(rep), rep.shape)

    def value_gradients(self, rep: Representation, gradient: Tensor) -> dict[str, Tensor]:
        r"""Pull a dense gradient back to the values by the chain rule through decode.

        .. math:: \nabla_v = \Big(\frac{\partial\,\mathrm{decode}(z, v)}{\partial v}\Big)'
            \nabla_w

        A shared value receives the sum of the gradients of its members.

        Args:
            rep: codes and values.
            gradient: ``[*shape]``, gradient with respect to the dense weight.

        Returns:
            One gradient per value, of its shape and dtype.
        """
        with torch.enable_grad():
            leaves = {name: v.detach().requires_grad_() for name, v in rep.values.items()}
            weight = self.decode(Representation(self, rep.codes, leaves, rep.shape))
            grads = torch.autograd.grad(
                weight, list(leaves.values()), gradient.to(weight.dtype), materialize_grads=True
            )
        return dict(zip(leaves, grads, strict=True))

    @property
    def has_levels(self) -> bool:
        """Whether codes are scalar, so that :meth:`bracket` is defined."""
        return type(self).bracket is not Parametrization.bracket

    def bracket(self, target: Tensor, rep: Representation, groups: Tensor | None) -> Candidates:
        """Return the two levels around each target: the nearest at or below, and at or above.

        Defined for scalar codes only (unbiased stochastic rounding needs it). Targets beyond the
        outermost level get that level twice.

        Args:
            target: ``[n, 1]``.
            rep: current values.
            groups: ``[n]`` group numbers, or None for all in order.

        Returns:
            Candidates with ``k = 2``: below, above.

        Raises:
            TypeError: where one code stands for several weights.
        """
        raise TypeError(
            f"{type(self).__name__} has no scalar levels to bracket a target with; "
            "unbiased (linear) stochastic rounding takes SharedValues, UniformGrid, "
            "Binary or Ternary, others take Stochastic(rule='power')"
        )

    def bits_per_weight(self, shape: tuple[int, ...], *, value_bits: int = 16) -> float:
        r"""Return the true storage per weight: codes, codebooks, scales.

        .. math:: \frac{B\,M\,G + b_v \sum_v |v|}{d}

        with ``G`` groups of ``M`` codes of ``B`` bits (``c`` codes that share a word count as
        :math:`\lceil c \log_2 K \rceil` bits) and values of ``b_v`` bits each.

        Args:
            shape: shape of the dense weight.
            value_bits: bits one stored value takes.

        Returns:
            Bits per weight.
        """
        values = sum(math.prod(s) for s in self.value_shapes(shape).values())
        return (self.stored_code_bits(shape) + value_bits * values) / math.prod(shape)

    @property
    def word_bits(self) -> int:
        """Bits of one stored word of ``codes_per_word`` codes."""
        return max(1, (self.num_codes**self.codes_per_word - 1).bit_length())

    def stored_code_bits(self, shape: tuple[int, ...]) -> int:
        """Return the bits all codes of a weight take, packed."""
        words = -(-math.prod(self.code_shape(shape)) // self.codes_per_word)
        return words * self.word_bits
