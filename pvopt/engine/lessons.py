"""How long the next steps on codes are: learnt from the gradients before and after moves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .code_memory import CodeMemory, Share
from .code_steps import CodeStep, cat
from .exchange import Exchange, together
from .placement import WHOLE, Placement
from .state import WeightState

__all__ = ["Lesson", "learn"]

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


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the lengths of the next steps on codes of some weights follow from.

    Args:
        step: on codes, which has been taken.
        gradients: of each matrix, before that.
        shares: learning rate of each weight over its largest so far.
        sign: 1 where the loss is to fall, -1 where it is to rise.
        placement: which rows all of these are of.
    """

    step: CodeStep
    gradients: Sequence[Tensor]
    shares: Sequence[float]
    sign: float
    placement: Placement = WHOLE

    def slopes(self, groups: Tensor, changes: Tensor) -> Exchange[tuple[Tensor, Tensor]]:
        """Return inner products of gradient and change, of all rows: of earlier changes, of these.

        Args:
            groups: ``[matrices, n]``, numbers among the groups of all rows.
            changes: ``[matrices, n, group_size]``.
        """
        step, kept = self.step, self.step.kept
        assert kept is not None
        pairs = ((kept.groups, kept.changes), (groups, changes))
        own = [self.placement.own_groups(step.before, *pair) for pair in pairs]
        parts = [step.slopes(self.gradients, *pair, self.sign) for pair in own]
        total = yield from self.placement.total(torch.stack(parts))
        # Added up in double precision, so that the order hardly matters.
        behind, ahead = total.float()
        return behind, ahead


def learn(lessons: Iterable[Lesson]) -> None:
    """Compute the next step's lengths, which count once this step is.

    Args:
        lessons: of distinct weights; those whose steps have a fixed length teach nothing.
    """
    alike: dict[torch.device, list[tuple[Lesson, CodeMemory]]] = {}
    for lesson in lessons:
        if lesson.step.kept is not None:
            alike.setdefault(lesson.step.lengths.device, []).append((lesson, lesson.step.kept))
    for known in alike.values():
        _learn(known)


def _learn(lessons: Sequence[tuple[Lesson, CodeMemory]]) -> None:
    observed = [lesson.step.observed() for lesson, _ in lessons]
    pairs = zip(lessons, observed, strict=True)
    slopes = together(lesson.slopes(groups, moved) for (lesson, _), (groups, _, moved) in pairs)
    behind, ahead = zip(*slopes, strict=True)
    wanted, every = [], []
    for lesson, _ in lessons:
        step = lesson.step
        each = len(step.lengths) // len(step.states)
        wanted += [_SHARE * share for share in lesson.shares for _ in range(each)]
        every += [each] * len(step.states)
    before, means = cat([kept.slopes for _, kept in lessons]).split([1, 2], dim=1)
    # Without moves the slope ahead of them is 0, and nothing was learnt.
    both = torch.cat([before, cat(behind)[:, None]], dim=1)
    means = torch.lerp(means, both, (before != 0) * (1 - _MEMORY))
    too_far = means[:, 1] > -_OVERSHOOT * means[:, 0]
    found = cat([share for _, share, _ in observed])
    growth = (torch.tensor(wanted).to(found, non_blocking=True) - found) * _GROWTH
    # After moves that went too far shorter ones; what rests may stay.
    growth = torch.where(too_far, found.sign() * math.log(_SHRINKAGE), growth)
    lengths = (cat([lesson.step.lengths for lesson, _ in lessons]) * growth.exp()).clamp_(1, 1e6)
    slopes = torch.cat([cat(ahead)[:, None], means], dim=1)
    sizes = [len(lesson.step.lengths) for lesson, _ in lessons]
    new = zip(lessons, observed, lengths.split(sizes), slopes.split(sizes), strict=True)
    own = zip(lengths.split(every), slopes.split(every), strict=True)
    for (lesson, _), (groups, _, changes), length, slope in new:
        _stage(lesson.step.states, CodeMemory(length, slope, groups, changes), own)


def _stage(
    states: Sequence[WeightState], memory: CodeMemory, own: Iterator[tuple[Tensor, Tensor]]
) -> None:
    """Keep for the next step what counts once this one is counted.

    Args:
        states: of some weights.
        memory: of all of them.
        own: yields the lengths and slopes of each of them, and then of others.
    """
    each = len(memory.length) // len(states)
    parts = memory.groups.split(each), memory.changes.split(each)
    for place, (state, groups, changes) in enumerate(zip(states, *parts, strict=True)):
        part = CodeMemory(*next(own), groups, changes)
        state.stage_code_memory(Share(memory, len(states), place, part))
