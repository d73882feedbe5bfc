"""How long steps on codes are: longer than on dense weights, as long as they lower the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from pvopt.core.layout import matrix_shape
from pvopt.parametrizations.representation import Representation
from pvopt_kernels.ops import gather_groups

from .moves import Moves
from .state import CodeMemory, WeightState

__all__ = ["CodeStep", "values_kept"]

# Of the selected groups this share is to find a better code at the largest learning rate.
_SHARE = 0.5
# Lengths grow by exp(0.125) a step until groups move: 40-fold in 30 steps.
_GROWTH = 0.25
# What is left of a length when moves go too far.
_SHRINKAGE = 0.9
# What is left of earlier slopes.
_MEMORY = 0.9
# Moves go too far where the slope behind them is more than this share of the slope ahead of them,
# with the other sign. On a quadratic the loss falls up to a share of 1, but the slope ahead is that
# of the very batch that the moves were chosen by: it is overestimated, several times in training.
_OVERSHOOT = 0.3


@dataclass(eq=False)
class CodeStep:
    r"""The step on codes where no latent weight adds up what is too short to reach another code.

    With the base optimizer's update :math:`u`, the codes of the selected groups are rounded to
    :math:`w + s\,u`. The learning rate within :math:`u` has to suit all weights at once, as
    :math:`1 / L` does; on a few groups steps of :math:`1 / L_S` lower the loss as well, which are
    :math:`s` times as long. Whether they do is seen by the gradients before and after a move
    :math:`d`,

    .. math:: \varphi(w + d) - \varphi(w) \approx
        \tfrac12 \langle g, d\rangle + \tfrac12 \langle g^+, d\rangle ,

    so :math:`s` grows until half of the selected groups find a better code, in proportion to the
    learning rate's share of its largest, and shrinks where :math:`\langle g^+, d\rangle` says that
    moves went too far.

    Args:
        lengths: ``[matrices]``, the :math:`s`.
        before: the matrices at which gradients were taken: the present codes, with the values
            before the P step.
        states: of the weights whose lengths are measured, else none.
    """

    lengths: Tensor
    before: Representation
    states: Sequence[WeightState] = ()
    _parts: list[CodeStep] = field(default_factory=list, init=False)
    _seen: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)

    @classmethod
    def fixed(cls, length: float, before: Representation) -> CodeStep:
        """Return steps of one length."""
        before = before.matrices
        like = next(iter(before.values.values()))
        return cls(like.new_full((before.count,), length), before)

    @classmethod
    def measured(cls, states: Sequence[WeightState], before: Representation) -> CodeStep:
        """Return steps of the lengths that are kept for each weight."""
        lengths = torch.cat([state.code_memory().length for state in states])
        return cls(lengths, before.matrices, states)

    def each(self) -> list[CodeStep]:
        """Return the steps of each matrix by itself."""
        members = self.before.members()
        self._parts = [CodeStep(n, m) for n, m in zip(self.lengths.split(1), members, strict=True)]
        return self._parts

    def extend(self, goals: Tensor, groups: Tensor | None = None) -> Tensor:
        """Lengthen the steps of some groups.

        Args:
            goals: ``[matrices, n, group_size]``, weight plus update.
            groups: ``[matrices * n]`` their numbers; None stands for all in order.
        """
        present = self.before.parametrization.decode_groups(self.before, groups)
        steps = goals - present.view_as(goals)
        return torch.addcmul(goals, steps, (self.lengths - 1).to(goals.dtype)[:, None, None])

    def observe(self, groups: Tensor, found: Moves, made: Moves) -> None:
        """Note for which of the selected groups a code was found, and how they change."""
        share = found.moved.view(len(groups), -1).mean(1, dtype=torch.float32)
        self._seen = groups, share, made.changes.view(*groups.shape, -1)

    def learn(self, gradients: Sequence[Tensor], shares: Sequence[float], sign: float) -> None:
        """Compute the next step's lengths, which count once this step is.

        Args:
            gradients: of each matrix, before this step.
            shares: learning rate of each weight over its largest so far.
            sign: 1 where the loss is to fall, -1 where it is to rise.
        """
        if not self.states:
            return
        kept = [state.code_memory() for state in self.states]
        where, last = _together([(memory.groups, memory.changes) for memory in kept])
        ahead, means = torch.cat([memory.slopes for memory in kept]).split([1, 2], dim=1)
        behind = self._slopes(gradients, where, last, sign)
        both = torch.cat([ahead, behind], dim=1)
        # Without moves the slope ahead of them is 0, and nothing was learnt.
        means = torch.lerp(means, both, (ahead != 0) * (1 - _MEMORY))
        too_far = means[:, 1] > -_OVERSHOOT * means[:, 0]
        groups, found, changes = self._observed(where.shape[1])
        ahead = self._slopes(gradients, groups, changes, sign)
        each = [len(memory.length) for memory in kept]
        wanted = [_SHARE * share for share, n in zip(shares, each, strict=True) for _ in range(n)]
        growth = (torch.tensor(wanted).to(found, non_blocking=True) - found) * _GROWTH
        # After moves that went too far shorter ones; what rests may stay.
        growth = torch.where(too_far, found.sign() * math.log(_SHRINKAGE), growth)
        lengths = (self.lengths * growth.exp()).clamp_(1, 1e6)
        new = lengths, torch.cat([ahead, means], dim=1), groups, changes
        parts = zip(*(tensor.split(each) for tensor in new), strict=True)
        for state, own in zip(self.states, parts, strict=True):
            state.stage_code_memory(CodeMemory(*own))

    def _observed(self, selected: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return groups, shares found and changes of this step, of some number of groups at least.

        Args:
            selected: the number.
        """
        seen = [part._seen or part._nothing(selected) for part in self._parts or [self]]
        groups, changes = _together([(own, change) for own, _, change in seen], selected)
        shares = [share for _, share, _ in seen]
        return groups, torch.cat(shares) if len(shares) > 1 else shares[0], changes

    def _nothing(self, selected: int) -> tuple[Tensor, Tensor, Tensor]:
        like, count = next(iter(self.before.values.values())), len(self.lengths)
        size = self.before.layout.group_size
        return (
            like.new_zeros(count, selected, dtype=torch.int64),
            torch.zeros_like(self.lengths),
            like.new_zeros(count, selected, size),
        )

    def _slopes(
        self, gradients: Sequence[Tensor], groups: Tensor, changes: Tensor, sign: float
    ) -> Tensor:
        """Return the inner product of gradient and change of each matrix, ``[matrices, 1]``."""
        rep = self.before
        if rep.space.trivial:
            matrices = [g if g.dim() == 2 else g.reshape(matrix_shape(g.shape)) for g in gradients]
            layout = rep.layout
            parts = gather_groups(
                matrices, groups, out_group=layout.out_group, in_group=layout.in_group
            )
            found = (parts * changes).flatten(1).sum(1, keepdim=True, dtype=torch.float32)
        else:
            found = torch.stack(
                [
                    (member.merge(_spread(own, change, rep)) * gradient).sum(dtype=torch.float32)
                    for member, gradient, own, change in zip(
                        rep.members(), gradients, groups, changes, strict=True
                    )
                ]
            )[:, None]
        return found if sign == 1 else sign * found


def _spread(groups: Tensor, changes: Tensor, rep: Representation) -> Tensor:
    """Return the changes of all groups of a matrix, ``[num_groups, group_size]``."""
    whole = changes.new_zeros(rep.layout.num_groups, changes.shape[1])
    return whole.index_add_(0, groups, changes)


def values_kept(rep: Representation) -> Representation:
    """Return a representation whose values do not move with those of another."""
    values = {name: value.clone() for name, value in rep.values.items()}
    return replace(rep, values=values, check=False)


def _together(pairs: Sequence[tuple[Tensor, Tensor]], selected: int = 0) -> tuple[Tensor, Tensor]:
    """Join groups and their changes; of fewer groups than others, group 0 comes unchanged."""
    selected = max(selected, max(groups.shape[1] for groups, _ in pairs))
    missing = [selected - groups.shape[1] for groups, _ in pairs]
    if any(missing):
        pairs = [
            (pad(groups, [0, n]), pad(changes, [0, 0, 0, n]))
            for (groups, changes), n in zip(pairs, missing, strict=True)
        ]
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([groups for groups, _ in pairs]), torch.cat([c for _, c in pairs])
