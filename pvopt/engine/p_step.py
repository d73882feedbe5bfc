"""The P step: move the continuous values of many weights along their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property

from torch import Tensor

from pvopt.parametrizations.representation import Representation
from pvopt.rules.value_optimizers import ValueOptimizer

from .state import WeightState

__all__ = ["ValueStep", "p_step", "remember"]

# Values that move at once, half of those of SmolLM2 as 2x8g8: Adam needs 4.5 MiB beside them. One
# run may have more.
_AT_ONCE = 9 << 16


@dataclass(eq=False)
class ValueStep:
    """Weights of one shape whose values are to move.

    Args:
        rep: their values are updated in place.
        gradients: ``[*shape]``, with respect to each dense weight.
        states: what the optimizer keeps for each: counts the steps, has the moments.
        lrs: learning rate of each weight's values.
        ascends: whether values move up their gradient.
        pulled: the gradients of the values, if they are known.
        sizes: root mean square ``[weights]`` of values that others hold some rows of, by name.
    """

    rep: Representation
    gradients: Sequence[Tensor]
    states: Sequence[WeightState]
    lrs: Sequence[float]
    ascends: bool = False
    pulled: InitVar[Mapping[str, Tensor] | None] = None
    sizes: Mapping[str, Tensor] = field(default_factory=dict)
    _pulled: Mapping[str, Tensor] | None = field(default=None, init=False)

    def __post_init__(self, pulled: Mapping[str, Tensor] | None) -> None:
        self._pulled = pulled

    @cached_property
    def downhill(self) -> list[Tensor]:
        """What the values of each weight move against, all of a name one after another."""
        found = self.rep.pull(self.gradients) if self._pulled is None else self._pulled
        if self.ascends:
            found = {name: -gradient for name, gradient in found.items()}
        self._pulled = None
        return [part for name in self.rep.values for part in found[name].chunk(self.rep.count)]

    def moments(self, kind: str) -> list[Tensor]:
        """Return moments of a kind, in the order of :attr:`downhill`."""
        return [state.moment(kind, name) for name in self.rep.values for state in self.states]

    def values(self) -> list[Tensor]:
        """Return the values, in the order of :attr:`downhill`."""
        return [part for name, v in self.rep.values.items() for part in _of_each(self, name, v)]

    def units(self) -> list[float | Tensor | None]:
        """Return how large a relative step of each value is."""
        known, none = self.rep.parametrization.value_units, [None] * len(self.states)
        sizes = {name: list(size.unbind()) for name, size in self.sizes.items()}
        return [known.get(name, own) for name in self.rep.values for own in sizes.get(name, none)]


def p_step(steps: Iterable[ValueStep], rule: ValueOptimizer) -> None:
    r"""Move values along the gradient pulled back through decode, many tensors at once.

    .. math:: v \leftarrow \mathrm{step}\big(v,\ (\partial w/\partial v)' g\big)

    The moments of the values stay as they are until :func:`remember`.

    Args:
        steps: of distinct weights.
        rule: how values move.

    Example:
        >>> import torch
        >>> from pvopt import SGDValues, SharedValues
        >>> from pvopt.engine.p_step import ValueStep, p_step
        >>> from pvopt.engine.state import WeightState
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> state, gradient = WeightState(rep, SGDValues()), torch.tensor([[1.0, -2.0]])
        >>> p_step([ValueStep(rep, [gradient], [state], [0.1])], SGDValues())
        >>> rep.decode(), state.values_step
        (tensor([[-0.1000,  1.2000]]), 1)

    References:
        PV-Tuning (arXiv 2405.14852), section 3.2.
    """
    for together in _batches(steps):
        gradients, moments = _remembered(together, rule)
        values: list[Tensor] = []
        lrs: list[float] = []
        numbers: list[int] = []
        units: list[float | Tensor | None] = []
        for step in together:
            count = len(step.rep.values)
            values += step.values()
            lrs += [*step.lrs] * count
            numbers += [state.count_values_step() for state in step.states] * count
            units += step.units()
        rule.move_(values, gradients, moments, lrs, numbers, units)


def remember(steps: Iterable[ValueStep], rule: ValueOptimizer) -> None:
    """Let moments of values take up the gradients that a P step moved these along.

    Args:
        steps: of the P step.
        rule: how values moved.
    """
    for together in _batches(steps) if rule.moments else ():
        rule.remember_(*_remembered(together, rule))


def _remembered(
    steps: Sequence[ValueStep], rule: ValueOptimizer
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Return the gradients of all values, and their moments."""
    gradients = [gradient for step in steps for gradient in step.downhill]
    kinds = rule.moments
    return gradients, {kind: [m for step in steps for m in step.moments(kind)] for kind in kinds}


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
