"""How long steps on codes are: longer than on dense weights, as long as they lower the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvopt.core.layout import matrix_shape
from pvopt.parametrizations.representation import Representation
from pvopt_kernels.ops import gather_groups

from .code_memory import CodeMemory, Share, padded
from .moves import Moves
from .state import WeightState

__all__ = ["CodeStep", "Lesson", "learn"]

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
        kept: what is kept for all of these weights, if there are any.
        selected: number of groups of each matrix that is kept at least.
    """

    lengths: Tensor
    before: Representation
    states: Sequence[WeightState] = ()
    kept: CodeMemory | None = None
    selected: int = 0
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
        kept = _joined(states)
        selected = max(state.code_memory().groups.shape[1] for state in states)
        return cls(kept.length, before.matrices, states, kept, selected)

    @property
    def learns(self) -> bool:
        """Whether lengths of later steps follow from what this one finds."""
        return self.kept is not None

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
        del present
        longer = (self.lengths - 1).to(goals.dtype).view(-1, 1, 1)
        return torch.addcmul(goals, steps, longer, out=steps)

    def observe(self, groups: Tensor, found: Tensor, made: Moves) -> None:
        """Note for how many of the selected groups a code was found, and how they change."""
        self._seen = groups, found / groups.shape[1], made.changes.view(*groups.shape, -1)

    def observed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return groups, shares found and changes of this step."""
        selected = self.selected
        seen = [part._seen or part._nothing(selected) for part in self._parts or [self]]
        groups, changes = padded([(own, change) for own, _, change in seen], selected)
        shares = [share for _, share, _ in seen]
        return groups, _cat(shares), changes

    def _nothing(self, selected: int) -> tuple[Tensor, Tensor, Tensor]:
        like, count = next(iter(self.before.values.values())), len(self.lengths)
        size = self.before.layout.group_size
        return (
            like.new_zeros(count, selected, dtype=torch.int64),
            torch.zeros_like(self.lengths),
            like.new_zeros(count, selected, size),
        )

    def slopes(
        self, gradients: Sequence[Tensor], groups: Tensor, changes: Tensor, sign: float
    ) -> Tensor:
        """Return the inner product of gradient and change of each matrix, ``[matrices]``."""
        rep = self.before
        if rep.space.trivial:
            matrices = [g if g.dim() == 2 else g.reshape(matrix_shape(g.shape)) for g in gradients]
            layout = rep.layout
            parts = gather_groups(
                matrices, groups, out_group=layout.out_group, in_group=layout.in_group
            )
            in_place = parts.dtype == changes.dtype
            products = parts.mul_(changes) if in_place else parts * changes
            found = products.sum((1, 2), dtype=torch.float32)
        else:
            found = torch.stack(
                [
                    (member.merge(_spread(own, change, rep)) * gradient).sum(dtype=torch.float32)
                    for member, gradient, own, change in zip(
                        rep.members(), gradients, groups, changes, strict=True
                    )
                ]
            )
        return found if sign == 1 else sign * found


def _spread(groups: Tensor, changes: Tensor, rep: Representation) -> Tensor:
    """Return the changes of all groups of a matrix, ``[num_groups, group_size]``."""
    whole = changes.new_zeros(rep.layout.num_groups, changes.shape[1])
    return whole.index_add_(0, groups, changes)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the lengths of the next steps on codes of some weights follow from.

    Args:
        step: on codes, which has been taken.
        gradients: of each matrix, before that.
        shares: learning rate of each weight over its largest so far.
        sign: 1 where the loss is to fall, -1 where it is to rise.
    """

    step: CodeStep
    gradients: Sequence[Tensor]
    shares: Sequence[float]
    sign: float


def learn(lessons: Iterable[Lesson]) -> None:
    """Compute the next step's lengths, which count once this step is.

    Args:
        lessons: of distinct weights; those whose steps have a fixed length teach nothing.
    """
    alike: dict[torch.device, list[tuple[Lesson, CodeMemory]]] = {}
    for lesson in lessons:
        if lesson.step.kept is not None:
            together = alike.setdefault(lesson.step.lengths.device, [])
            together.append((lesson, lesson.step.kept))
    for together in alike.values():
        _learn(together)


def _learn(lessons: Sequence[tuple[Lesson, CodeMemory]]) -> None:
    observed, ahead, behind, wanted, every = [], [], [], [], []
    for lesson, kept in lessons:
        step, gradients, sign = lesson.step, lesson.gradients, lesson.sign
        groups, found, changes = step.observed()
        behind.append(step.slopes(gradients, kept.groups, kept.changes, sign))
        ahead.append(step.slopes(gradients, groups, changes, sign))
        observed.append((groups, found, changes))
        each = len(step.lengths) // len(step.states)
        wanted += [_SHARE * share for share in lesson.shares for _ in range(each)]
        every += [each] * len(step.states)
    before, means = _cat([kept.slopes for _, kept in lessons]).split([1, 2], dim=1)
    # Without moves the slope ahead of them is 0, and nothing was learnt.
    both = torch.cat([before, _cat(behind)[:, None]], dim=1)
    means = torch.lerp(means, both, (before != 0) * (1 - _MEMORY))
    too_far = means[:, 1] > -_OVERSHOOT * means[:, 0]
    found = _cat([share for _, share, _ in observed])
    growth = (torch.tensor(wanted).to(found, non_blocking=True) - found) * _GROWTH
    # After moves that went too far shorter ones; what rests may stay.
    growth = torch.where(too_far, found.sign() * math.log(_SHRINKAGE), growth)
    lengths = (_cat([lesson.step.lengths for lesson, _ in lessons]) * growth.exp()).clamp_(1, 1e6)
    slopes = torch.cat([_cat(ahead)[:, None], means], dim=1)
    sizes = [len(lesson.step.lengths) for lesson, _ in lessons]
    new = zip(lessons, observed, lengths.split(sizes), slopes.split(sizes), strict=True)
    own = zip(lengths.split(every), slopes.split(every), strict=True)
    for (lesson, _), (groups, _, changes), length, slope in new:
        _stage(lesson.step.states, CodeMemory(length, slope, groups, changes), own)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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


def _joined(states: Sequence[WeightState]) -> CodeMemory:
    """Return what is kept for some weights as one; without a copy if it was staged so."""
    first = states[0].code_share()
    if first is not None and first.count == len(states):
        shares = [state.code_share() for state in states]
        same = (s is not None and s.memory is first.memory for s in shares)
        if all(same) and all(s is not None and s.place == i for i, s in enumerate(shares)):
            return first.memory
    kept = [state.code_memory() for state in states]
    pairs = [(memory.groups, memory.changes) for memory in kept]
    if all(state.step == 0 for state in states):  # nothing was selected yet
        pairs = [(groups[:, :0], changes[:, :0]) for groups, changes in pairs]
    groups, changes = padded(pairs)
    length, slopes = _cat([m.length for m in kept]), _cat([m.slopes for m in kept])
    return CodeMemory(length, slopes, groups, changes)
