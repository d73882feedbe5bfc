"""Subspace rules: which groups may change their codes in a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.core.registry import Registry, ShortForm
from pvopt_kernels.ops import largest

__all__ = [
    "SUBSPACES",
    "AllGroups",
    "Decreases",
    "Farthest",
    "Gain",
    "Greedy",
    "Proportional",
    "Subspace",
    "Uniform",
]

#: Subspace rules by name.
SUBSPACES: Registry[Subspace] = Registry("subspace rule")


@dataclass(frozen=True, eq=False)
class Decreases:
    """By how much moving a group to its best code is predicted to lower the loss.

    Args:
        bounds: ``[num_groups]`` non-negative; no decrease is larger. 0 for groups that must stay.
        search: returns the decreases ``[n]`` of groups ``[n]``; costs a search of these groups.
    """

    bounds: Tensor
    search: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Farthest:
    """The changes that groups ask for, of which only the largest are looked at.

    Args:
        num_groups: of each weight.
        find: returns the groups ``[weights, n]`` of the ``n`` largest, in order.
    """

    num_groups: int
    find: Callable[[int], Tensor]


class Subspace(ABC):
    """Choose the coordinate subspace of one V step."""

    #: Whether :meth:`select` must be given ``decreases``.
    needs_decreases: bool = False
    #: Whether the order of the magnitudes decides, so that ties have to mean something.
    ranks: bool = False
    #: Whether :meth:`select` takes a ``Farthest`` in place of magnitudes, those of all groups of
    #: all weights are then never kept together.
    reads_largest: bool = False
    #: Whether ``select`` takes the groups of the largest ``keys``, ``count`` of them, so that
    #: processes that hold some rows each can select together.
    keyed: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "select" in vars(cls):  # another selection than the inherited one
            for name in ("reads_largest", "keyed"):
                if name not in vars(cls):
                    setattr(cls, name, False)

    def count(self, num_groups: int) -> int:
        """Return how many of ``num_groups`` groups are selected: usually all."""
        return num_groups

    def keys(self, magnitudes: Tensor, draws: Draws) -> Tensor:
        """Return what the groups of the largest of are selected: usually the magnitudes.

        Args:
            magnitudes: ``[weights, n]`` of some groups of each weight.
            draws: source of a random number for each of these groups.

        Returns:
            ``[weights, n]``, floating.
        """
        return magnitudes

    @abstractmethod
    def select(
        self,
        magnitudes: Tensor,
        draws: Draws | None = None,
        *,
        ordered: bool = True,
        decreases: Decreases | None = None,
    ) -> Tensor:
        """Select groups by the size of the change that each asks for.

        Args:
            magnitudes: ``[weights, num_groups]`` non-negative norms ``||target_g - w_g||``.
            draws: source of random draws.
            ordered: whether the most important group must come first; False is cheaper.
            decreases: what moving each group is worth, for rules that need it; there is one
                weight then.

        Returns:
            ``[weights, n]`` distinct group numbers of each weight, int64.
        """


@SUBSPACES.register(ShortForm.word("all", "every group"))
@dataclass(frozen=True)
class AllGroups(Subspace):
    """Let every group move: the full-space linearized V step, and straight-through estimation.

    Example:
        >>> import torch
        >>> from pvopt import AllGroups
        >>> AllGroups().select(torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([[1, 2, 0]])
    """

    ranks = True
    keyed = True

    def select(
        self,
        magnitudes: Tensor,
        draws: Draws | None = None,
        *,
        ordered: bool = True,
        decreases: Decreases | None = None,
    ) -> Tensor:
        if ordered:
            return magnitudes.argsort(dim=1, descending=True, stable=True)
        return torch.arange(magnitudes.shape[1], device=magnitudes.device).expand_as(magnitudes)


@dataclass(frozen=True)
class _Fraction(Subspace):
    """A rule that selects ``ceil(fraction * num_groups)`` groups."""

    fraction: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")

    def count(self, num_groups: int) -> int:
        """Return how many of ``num_groups`` groups are selected: at least one."""
        # Rounded first, so that 0.07 * 100 = 7.000000000000001 selects 7 groups and not 8.
        return max(1, min(num_groups, math.ceil(round(self.fraction * num_groups, 6))))

    def _largest(self, keys: Tensor) -> Tensor:
        """Return the groups of the largest keys of each weight, in order."""
        return largest(keys, self.count(keys.shape[1]))[1]


def _by_share(word: str, meaning: str) -> ShortForm[Any]:
    """Return the short form of a rule that selects a share of the groups."""
    return ShortForm(
        form=f"{word}[:F]",
        meaning=f"{meaning}, a share F of all",
        example=f"{word}:0.01",
        pattern=word + r"(?::([\d.e-]+))?",
        settings=lambda share: dict(fraction=float(share or 0.01)),
        write=lambda rule: f"{word}:{rule.fraction!r}",
    )


@SUBSPACES.register(_by_share("greedy", "the groups that ask for the largest change"))
@dataclass(frozen=True)
class Greedy(_Fraction):
    r"""Select the groups that ask for the largest change.

    .. math:: S = \mathrm{top}_{\lceil\tau G\rceil}\ \|t_g - w_g\|

    Args:
        fraction: :math:`\tau` in (0, 1], the share of groups.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1].

    Example:
        >>> import torch
        >>> from pvopt import Greedy
        >>> Greedy(0.5).select(torch.tensor([[1.0, 3.0, 2.0, 0.5]]))
        tensor([[1, 2]])

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3: the subspace linearized V step.
    """

    ranks = True
    reads_largest = True
    keyed = True

    def select(
        self,
        magnitudes: Tensor | Farthest,
        draws: Draws | None = None,
        *,
        ordered: bool = True,
        decreases: Decreases | None = None,
    ) -> Tensor:
        if isinstance(magnitudes, Farthest):
            return magnitudes.find(self.count(magnitudes.num_groups))
        return self._largest(magnitudes)


@SUBSPACES.register(_by_share("uniform", "groups at random"))
@dataclass(frozen=True)
class Uniform(_Fraction):
    """Select groups at random, each with the same probability, without replacement.

    Args:
        fraction: share of groups in (0, 1].

    Raises:
        ValueError: if ``fraction`` is outside (0, 1].

    Example:
        >>> import torch
        >>> from pvopt import Uniform
        >>> Uniform(0.1).select(torch.ones(1, 50)).shape
        torch.Size([1, 5])
    """

    keyed = True

    def keys(self, magnitudes: Tensor, draws: Draws) -> Tensor:
        return draws.uniform(magnitudes.shape[1])

    def select(
        self,
        magnitudes: Tensor,
        draws: Draws | None = None,
        *,
        ordered: bool = True,
        decreases: Decreases | None = None,
    ) -> Tensor:
        return self._largest(self.keys(magnitudes, Draws.of(draws, magnitudes.device)))


@SUBSPACES.register(_by_share("proportional", "groups at random, by the size of their change"))
@dataclass(frozen=True)
class Proportional(_Fraction):
    r"""Draw groups without replacement with probability proportional to a power of the magnitude.

    .. math:: P(g) \propto \|t_g - w_g\|^{1/\theta}

    by Gumbel top-k: the largest of :math:`\log\|t_g - w_g\| / \theta + \gamma_g` with
    independent standard Gumbel :math:`\gamma_g` (``torch.multinomial`` fails beyond 2^24 groups).

    Args:
        fraction: share of groups in (0, 1].
        temperature: :math:`\theta > 0`; towards 0 it becomes greedy, towards infinity uniform.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1] or ``temperature`` is not positive.

    Example:
        >>> import torch
        >>> from pvopt import Proportional
        >>> rule = Proportional(0.5, temperature=1e-3)
        >>> rule.select(torch.tensor([[1.0, 3.0, 2.0, 0.5]]))
        tensor([[1, 2]])

    References:
        Kool et al., "Stochastic Beams and Where to Find Them" (arXiv 1903.06059), section 2.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    keyed = True

    def keys(self, magnitudes: Tensor, draws: Draws) -> Tensor:
        # float64 keeps the keys distinct: float32 uniforms have 2^24 values only.
        uniform = draws.uniform(magnitudes.shape[1], torch.float64)
        gumbel = -torch.log(-torch.log(uniform))
        return magnitudes.double().log() / self.temperature + gumbel

    def select(
        self,
        magnitudes: Tensor,
        draws: Draws | None = None,
        *,
        ordered: bool = True,
        decreases: Decreases | None = None,
    ) -> Tensor:
        return self._largest(self.keys(magnitudes, Draws.of(draws, magnitudes.device)))


@SUBSPACES.register(_by_share("gain", "the groups of largest predicted decrease"))
@dataclass(frozen=True)
class Gain(_Fraction):
    r"""Select the groups whose best change of code is predicted to lower the loss most.

    .. math:: S = \mathrm{top}_{\lceil\tau G\rceil}\ \Delta_g, \qquad
        \Delta_g = \max_z \tfrac12 \|t_g - w_g\|_D^2 - \tfrac12 \|t_g - \mathrm{decode}(z)\|_D^2

    the decrease of the V step's upper bound, with :math:`D` the optimizer's metric (1 without
    one). Groups without a positive decrease are not selected, so that no place is lost to a group
    that asks for a large change and cannot cross to another code, as :class:`Greedy` loses them.

    A decrease takes a search. No decrease is larger than :math:`\tfrac12\|t_g - w_g\|_D^2`, so
    groups are searched in order of this bound, in growing batches, until enough decreases are at
    least the next bound: the selection is exact. Where fewer groups gain than are wanted, as with
    short steps, that is a search of all groups in every step, the cost of :class:`AllGroups`.

    Args:
        fraction: :math:`\tau` in (0, 1], the largest share of groups.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1].

    Example:
        >>> import torch
        >>> from pvopt import Decreases, Gain
        >>> gains = torch.tensor([0.0, 1.0, 4.0, 3.0])
        >>> decreases = Decreases(torch.tensor([9.0, 2.0, 5.0, 3.0]), lambda groups: gains[groups])
        >>> Gain(0.5).select(torch.tensor([[4.0, 2.0, 3.0, 2.5]]), decreases=decreases)
        tensor([[2, 3]])

    References:
        Iterative OBS (NeurIPS 2024): saliency as the predicted change of the loss.
    """

    needs_decreases = True

    def select(
        self,
        magnitudes: Tensor,
        draws: Draws | None = None,
        *,
        ordered: bool = True,
        decreases: Decreases | None = None,
    ) -> Tensor:
        if decreases is None:
            raise TypeError("decreases must be given: Gain selects by them, got None")
        count = self.count(magnitudes.shape[1])
        bounds, order = decreases.bounds.sort(descending=True, stable=True)
        last = int((bounds > 0).sum())
        found = bounds.new_empty(0)  # the decreases of the groups searched, order[:len(found)]
        batch = 2 * count
        while len(found) < last:
            if len(found) >= count and found.topk(count).values[-1] >= bounds[len(found)]:
                break
            part = order[len(found) : min(len(found) + batch, last)]
            found = torch.cat([found, decreases.search(part)])
            batch *= 2
        gains, index = found.sort(descending=True, stable=True)
        return order[index[:count][gains[:count] > 0]][None]
