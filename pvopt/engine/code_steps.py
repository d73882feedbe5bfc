"""How long steps on codes are: longer than on dense weights, as long as they lower the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvopt.core.layout import matrix_shape
from pvopt.parametrizations.representation import Representation
from pvopt_kernels.ops import gather_groups

from .code_memory import CodeMemory, padded
from .state import WeightState

__all__ = ["CodeStep", "cat"]


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
        learns: whether lengths of later steps follow from what this one finds.
    """

    lengths: Tensor
    before: Representation
    states: Sequence[WeightState] = ()
    kept: CodeMemory | None = None
    selected: int = 0
    learns: bool = False
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
        return cls(kept.length, before.matrices, states, kept, selected, learns=True)

    def each(self) -> list[CodeStep]:
        """Return the steps of each matrix by itself."""
        pairs = zip(self.lengths.split(1), self.before.members(), strict=True)
        self._parts = [CodeStep(length, own, learns=self.learns) for length, own in pairs]
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

    def observe(self, groups: Tensor, changes: Tensor, found: Tensor) -> None:
        """Note which groups were selected, how they change, and for how many a code was found."""
        self._seen = groups, found / groups.shape[1], changes

    def observed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return groups, shares found and changes of this step."""
        selected = self.selected
        seen = [part._seen or part._nothing(selected) for part in self._parts or [self]]
        groups, changes = padded([(own, change) for own, _, change in seen], selected)
        shares = [share for _, share, _ in seen]
        return groups, cat(shares), changes

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
            found = products.sum((1, 2), dtype=torch.float64)
        else:
            found = torch.stack(
                [
                    (member.merge(_spread(own, change, rep)) * gradient).sum(dtype=torch.float64)
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
    length, slopes = cat([m.length for m in kept]), cat([m.slopes for m in kept])
    return CodeMemory(length, slopes, groups, changes)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
