"""How long steps on codes are: longer than on dense weights, as long as they lower the loss."""

from __future__ import annotations

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
        lengths: ``[weights]``, the :math:`s`.
        before: the weights at which gradients were taken: the present codes, with the values
            before the P step.
        states: of the weights whose lengths are measured, else none.
    """

    lengths: Tensor
    before: Representation
    states: Sequence[WeightState] = ()
    _seen: tuple[Tensor, Moves, Moves] | None = field(default=None, init=False)

    @classmethod
    def fixed(cls, length: float, before: Representation) -> CodeStep:
        """Return steps of one length."""
        like = next(iter(before.values.values()))
        return cls(like.new_full((before.count,), length), before)

    @classmethod
    def measured(cls, states: Sequence[WeightState], before: Representation) -> CodeStep:
        """Return steps of the lengths that are kept for each weight."""
        return cls(torch.stack([s.code_memory().length for s in states]), before, states)

    def extend(self, goals: Tensor, groups: Tensor | None = None) -> Tensor:
        """Lengthen the steps of some groups.

        Args:
            goals: ``[weights, n, group_size]``, weight plus update.
            groups: ``[weights * n]`` their numbers; None stands for all in order.
        """
        present = self.before.parametrization.decode_groups(self.before, groups)
        steps = goals - present.view_as(goals)
        return torch.addcmul(goals, steps, (self.lengths - 1).to(goals.dtype)[:, None, None])

    def observe(self, groups: Tensor, found: Moves, made: Moves) -> None:
        """Note what was found for the selected groups, and what the trust region left of it."""
        self._seen = groups, found, made

    def learn(self, gradients: Sequence[Tensor], shares: Sequence[float], sign: float) -> None:
        """Compute the next step's lengths, which count once this step is.

        Args:
            gradients: ``[*shape]`` of each weight, before this step.
            shares: learning rate of each weight over its largest so far.
            sign: 1 where the loss is to fall, -1 where it is to rise.
        """
        if not self.states:
            return
        size, kept = self.before.layout.group_size, [s.code_memory() for s in self.states]
        most = max(memory.groups.shape[0] for memory in kept)
        last = torch.stack([_padded(memory.changes, most) for memory in kept])
        where = torch.stack([_padded(memory.groups, most) for memory in kept])
        ahead, means = torch.stack([memory.slopes for memory in kept]).split([1, 2], dim=1)
        behind = sign * self._slopes(gradients, where, last)[:, None]
        moved = (last != 0).flatten(1).any(1, keepdim=True)
        both = torch.cat([ahead, behind], dim=1)
        means = torch.where(moved, _MEMORY * means + (1 - _MEMORY) * both, means)
        too_far = means[:, 1] > -_OVERSHOOT * means[:, 0]
        if self._seen is None:
            groups, changes = where, torch.zeros_like(last)
            found = torch.zeros_like(self.lengths)
        else:
            groups, search, made = self._seen
            found = search.moved.view(len(groups), -1).to(self.lengths.dtype).mean(1)
            changes = made.changes.view(*groups.shape, size)
        ahead = sign * self._slopes(gradients, groups, changes)[:, None]
        wanted = _SHARE * torch.tensor(shares).to(self.lengths, non_blocking=True)
        factors = torch.where(
            too_far,
            torch.where(found > 0, _SHRINKAGE, 1.0),  # what rests may stay
            torch.exp(_GROWTH * (wanted - found)),
        )
        lengths = (self.lengths * factors).clamp_(1, 1e6)
        slopes = torch.cat([ahead, means], dim=1)
        for i, (state, memory) in enumerate(zip(self.states, kept, strict=True)):
            n = max(len(memory.groups), groups.shape[1])
            state.stage_code_memory(
                CodeMemory(lengths[i], slopes[i], _padded(groups[i], n), _padded(changes[i], n))
            )

    def _slopes(self, gradients: Sequence[Tensor], groups: Tensor, changes: Tensor) -> Tensor:
        """Return the inner product of gradient and change of each weight, ``[weights]``."""
        rep = self.before
        if rep.space.trivial:
            matrices = [g if g.dim() == 2 else g.reshape(matrix_shape(g.shape)) for g in gradients]
            layout = rep.layout
            parts = gather_groups(
                matrices, groups, out_group=layout.out_group, in_group=layout.in_group
            )
            return (parts * changes).flatten(1).sum(1, dtype=torch.float32)
        whole = changes.new_zeros(rep.layout.num_groups, changes.shape[2])
        whole.index_add_(0, groups[0], changes[0])
        return (rep.merge(whole) * gradients[0]).sum(dtype=torch.float32)[None]


def values_kept(rep: Representation) -> Representation:
    """Return a representation whose values do not move with those of another."""
    return replace(rep, values={name: value.clone() for name, value in rep.values.items()})


def _padded(kept: Tensor, count: int) -> Tensor:
    """Return what is kept of some groups as of more: group 0, which does not change."""
    if len(kept) == count:
        return kept
    return pad(kept, [0, 0] * (kept.dim() - 1) + [0, count - len(kept)])
