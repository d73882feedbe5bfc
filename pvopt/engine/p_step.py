"""The P step: move the continuous values of many weights along their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pvopt.parametrizations.representation import Representation
from pvopt.rules.value_optimizers import ValueOptimizer

__all__ = ["ValueStep", "p_step"]

# Values that move at once, so that their gradients take 16 MiB; the values of all 210 layers of
# SmolLM2-135M as 2x8g8 are a million. One weight may have more.
_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class ValueStep:
    """One weight whose values are to move.

    Args:
        rep: its values are updated in place.
        gradient: ``[*shape]``, gradient with respect to the dense weight.
        state: what the optimizer keeps for the weight: counts the steps, has the moments.
        lr: learning rate of the values.
    """

    rep: Representation
    gradient: Tensor
    state: dict[str, Any]
    lr: float


def p_step(steps: Iterable[ValueStep], rule: ValueOptimizer) -> None:
    r"""Move values along the gradient pulled back through decode, many tensors at once.

    .. math:: v \leftarrow \mathrm{step}\big(v,\ (\partial w/\partial v)' g\big)

    Args:
        steps: of distinct weights.
        rule: how values move.

    Example:
        >>> import torch
        >>> from pvopt import SGDValues, SharedValues
        >>> rep = SharedValues(2).fit(torch.tensor([[0.0, 1.0]]))
        >>> state = {"values_step": torch.zeros((), dtype=torch.int64)}
        >>> p_step([ValueStep(rep, torch.tensor([[1.0, -2.0]]), state, lr=0.1)], SGDValues())
        >>> rep.decode(), int(state["values_step"])
        (tensor([[-0.1000,  1.2000]]), 1)

    References:
        PV-Tuning (arXiv 2405.14852), section 3.2.
    """
    for lr, number, together in _batches(steps):
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        moments: dict[str, list[Tensor]] = {name: [] for name in rule.moments}
        for step in together:
            pulled = step.rep.parametrization.value_gradients(step.rep, step.gradient)
            for name, value in step.rep.values.items():
                values.append(value)
                gradients.append(pulled[name])
                for moment, tensors in moments.items():
                    tensors.append(step.state[f"values.{name}.{moment}"])
        rule.update_(values, gradients, moments, lr, number)


def _batches(steps: Iterable[ValueStep]) -> Iterator[tuple[float, int, list[ValueStep]]]:
    """Count the steps; yield learning rate, number and steps that have them in common."""
    lr, number = 0.0, 0
    batch: list[ValueStep] = []
    size = 0
    for step in steps:
        step.state["values_step"] += 1
        next_number = int(step.state["values_step"])
        more = sum(value.numel() for value in step.rep.values.values())
        other = (step.lr, next_number) != (lr, number)
        if batch and (other or size + more > _AT_ONCE):
            yield lr, number, batch
            batch, size = [], 0
        batch.append(step)
        lr, number, size = step.lr, next_number, size + more
    if batch:
        yield lr, number, batch
