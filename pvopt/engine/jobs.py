"""What a step is to do to each quantized weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pvopt.rules.phases import HalfSteps, Phases
from pvopt.rules.value_optimizers import ValueOptimizer

from .agreement import WeightsChangedError
from .base_contract import check_quantized_group
from .bindings import Binding
from .group_settings import GroupSettings
from .latents import BaseStep

__all__ = ["Job", "jobs_of"]


@dataclass(eq=False)
class Job:
    """One quantized weight in one step.

    Args:
        binding: the weight.
        group: its parameter group.
        settings: of the group.
        half_steps: which of them the weight takes.
        base: what the base optimizer does to it.
        lr: the group's learning rate.
    """

    binding: Binding
    group: dict[str, Any]
    settings: GroupSettings
    half_steps: HalfSteps
    base: BaseStep
    lr: float

    @property
    def ascends(self) -> bool:
        """Whether the group maximizes."""
        return bool(self.group.get("maximize", False))

    def value_lr(self, rule: ValueOptimizer) -> float:
        """Return the learning rate of the values."""
        ratio, largest = self.settings.values_lr_ratio, max(self.lr, self.base.state.largest_lr)
        return rule.rate(ratio * self.lr, ratio * largest)

    @property
    def key(self) -> tuple[Any, ...]:
        """What weights have in common that take a step together."""
        moves, step = self.lr != 0, self.base.state.step
        return self.settings, self.half_steps, moves, self.ascends, self.base.written, step

    @property
    def gradient(self) -> Tensor:
        """The dense gradient."""
        return self.binding.placement.gradient(self.base.parameter)


def jobs_of(
    base: Optimizer,
    bindings: Mapping[int, Binding],
    phases: Phases,
    settings_of: Callable[[Mapping[str, Any]], GroupSettings],
) -> dict[str, Job]:
    """Collect the quantized weights that have a gradient.

    Args:
        base: the optimizer of the dense weights.
        bindings: the quantized weights by the ``id`` of their present parameters.
        phases: which half steps run when.
        settings_of: returns the options of a parameter group.

    Returns:
        What is to be done, by the names of the weights.

    Raises:
        TypeError: for a group of such weights without a learning rate.
        ValueError: for a group whose weights could not move as they should.
        WeightsChangedError: if a weight of the optimizer is another parameter now.
    """
    _check_still_ours(base, bindings)
    jobs = {}
    for group in base.param_groups:
        settings = settings_of(group)
        quantized = [p for p in group["params"] if p.grad is not None and id(p) in bindings]
        if not quantized:
            continue
        check_quantized_group(base, group, settings)
        lr, keeps = float(group["lr"]), settings.keeps_latent  # waits for one on a device once
        for p in quantized:
            binding = bindings[id(p)]
            planned = phases.at(binding.state.step)
            half_steps = HalfSteps(
                values=planned.values and not settings.freeze_values,
                codes=planned.codes and not settings.freeze_codes,
            )
            needed = keeps or half_steps.codes
            written = lr != 0 and (needed or half_steps.values)
            place, data = binding.placement, binding.data(p)
            step = BaseStep(p, data, binding.state, keeps, needed, written, placement=place)
            jobs[binding.name] = Job(binding, group, settings, half_steps, step, lr)
    return jobs


def _check_still_ours(base: Optimizer, bindings: Mapping[int, Binding]) -> None:
    """Raise if the model has a new parameter, which no group has, in the place of one of ours."""
    present = {id(p) for group in base.param_groups for p in group["params"]}
    lost = [
        repr(binding.name)
        for key, binding in bindings.items()
        if binding.owned and key not in present and binding.parameter.grad is not None
    ]
    if lost:
        raise WeightsChangedError(
            f"{', '.join(lost[:8])}{' ...' if lost[8:] else ''}: the model has a new parameter in "
            "its place (load_state_dict(assign=True), a replaced layer), which is in no group of "
            "the optimizer and would never move; nothing was changed. Load without assign, or "
            "weights.refit_() and make a new optimizer"
        )
