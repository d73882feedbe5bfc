"""The P step: move the continuous values of many weights along their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pvopt.parametrizations.representation import Representation
from pvopt.rules.value_optimizers import ValueOptimizer

from .state import WeightState

__all__ = ["ValueStep", "p_step"]

# Values that move at once, so that their gradients take 16 MiB. One stack may have more.
_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class ValueStep:
    """Weights of one shape whose values are to move.

    Args:
        rep: their values are updated in place.
        gradients: ``[*shape]``, with respect to each dense weight.
        states: what the optimizer keeps for each: counts the steps, has the moments.
        lrs: learning rate of each weight's values.
        ascends: whether values move up their gradient.
        pulled: the gradients of the values, if they are known; they may be overwritten.
    """

    rep: Representation
    gradients: Sequence[Tensor]
    states: Sequence[WeightState]
    lrs: Sequence[float]
    ascends: bool = False
    pulled: Mapping[str, Tensor] | None = None


def p_step(steps: Iterable[ValueStep], rule: ValueOptimizer) -> None:
    r"""Move values along the gradient pulled back through decode, many tensors at once.

    .. math:: v \leftarrow \mathrm{step}\big(v,\ (\partial w/\partial v)' g\big)

    Args:
        steps: of distinct weights.
        rule: how values move.

    Example:
        >>> import torch
        >>> from pvopt import SGDValues, SharedValues
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> state, gradient = WeightState(rep, SGDValues()), torch.tensor([[1.0, -2.0]])
        >>> p_step([ValueStep(rep, [gradient], [state], [0.1])], SGDValues())
        >>> rep.decode(), state.values_step
        (tensor([[-0.1000,  1.2000]]), 1)

    References:
        PV-Tuning (arXiv 2405.14852), section 3.2.
    """
    for together in _batches(steps):
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        moments: dict[str, list[Tensor]] = {kind: [] for kind in rule.moments}
        lrs: list[float] = []
        numbers: list[int] = []
        units: list[float | None] = []
        for step in together:
            counted = [state.count_values_step() for state in step.states]
            pulled = step.rep.pull(step.gradients) if step.pulled is None else step.pulled
            if step.ascends:
                pulled = {name: -gradient for name, gradient in pulled.items()}
            for name, value in step.rep.values.items():
                count = step.rep.count
                values += _of_each(step, name, value)
                gradients += pulled[name].chunk(count)
                for kind, tensors in moments.items():
                    tensors += [state.moment(kind, name) for state in step.states]
                lrs += step.lrs
                numbers += counted
                units += [step.rep.parametrization.value_units.get(name)] * count
        rule.update_(values, gradients, moments, lrs, numbers, units)


def _of_each(step: ValueStep, name: str, value: Tensor) -> Sequence[Tensor]:
    """Return the value of each weight; those that know it have views of the stack's."""
    own = [state.rep.values[name] for state in step.states]
    if all(part.untyped_storage().data_ptr() == value.untyped_storage().data_ptr() for part in own):
        return own
    return value.chunk(step.rep.count)


def _batches(steps: Iterable[ValueStep]) -> Iterator[list[ValueStep]]:
    """Yield steps whose values are not too many together."""
    batch: list[ValueStep] = []
    size = 0
    for step in steps:
        more = sum(value.numel() for value in step.rep.values.values())
        if batch and size + more > _AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(step)
        size += more
    if batch:
        yield batch
