"""Weights of one shape that take a step together."""

# torch.optim is built on _foreach_lerp_; its name begins with an underscore all the same.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation
from pvopt.rules.value_optimizers import ValueOptimizer

from .code_steps import CodeStep
from .exchange import Exchange
from .group_settings import GroupSettings
from .jobs import Job
from .lessons import Lesson
from .p_step import ValueStep
from .placement import Placement, Pulled
from .stacks import Stack
from .writing import write_decoded_

__all__ = ["AT_ONCE", "AT_ONCE_LATENT", "Run", "runs_of"]

#: Weights that take a step together: fewer make more calls (benchmarks.step), most of them where
# the lengths of steps on codes are measured.
AT_ONCE = 1 << 26
#: With latent weights: of 1 % of the groups all that is known takes 3 MiB then.
AT_ONCE_LATENT = 1 << 24
# Weights whose first step leaves holes in the heap that are worth the look for them.
_LARGE = 1 << 22
# Weights that are searched together: 16 MiB each for targets, new and present weights and more.
_SEARCHED = 1 << 22


@dataclass(eq=False)
class Run:
    """Weights of one shape, scheme and settings that take a step together.

    Args:
        rep: all of them, one below the other.
        jobs: one for each.
    """

    rep: Representation
    jobs: Sequence[Job]
    _pulled: Pulled | None = field(default=None, init=False)

    @property
    def settings(self) -> GroupSettings:
        """The settings of their groups."""
        return self.jobs[0].settings

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights."""
        return tuple(job.binding.name for job in self.jobs)

    @property
    def size(self) -> int:
        """Number of entries of the weights."""
        return len(self.jobs) * self.placement.size(self.jobs[0].binding.rep)

    @property
    def begins(self) -> bool:
        """Whether this is the first step of weights that are not small."""
        return self.jobs[0].base.state.step == 0 and self.size >= _LARGE

    @property
    def placement(self) -> Placement:
        """Which rows of the weights codes and values are of."""
        return self.jobs[0].binding.placement

    @property
    def num_groups(self) -> int:
        """Number of groups of each weight, of all of its rows."""
        return self.placement.num_groups(self.jobs[0].binding.rep)

    @property
    def weights(self) -> list[Tensor]:
        """The entries of the weights, to be written."""
        return [job.binding.placement.entries(job.base.parameter) for job in self.jobs]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.rep.device

    @property
    def moves_values(self) -> bool:
        """Whether there is a P step; a learning rate of 0 moves nothing."""
        return self.jobs[0].half_steps.values and self.jobs[0].lr != 0

    @property
    def moves_codes(self) -> bool:
        """Whether there is a V step."""
        return self.jobs[0].half_steps.codes and self.jobs[0].lr != 0

    @property
    def values_follow(self) -> bool:
        """Whether the V step moves values and their moments, too."""
        return self.moves_codes and self.rep.parametrization.values_follow_codes

    @property
    def written(self) -> bool:
        """Whether the weights are written at the end."""
        return self.jobs[0].base.written

    @property
    def targets(self) -> list[Tensor]:
        """What the base optimizer made of each weight, where a V step or a latent needs it."""
        return [job.base.target for job in self.jobs if job.base.target is not None]

    @property
    def gradients(self) -> list[Tensor]:
        """The dense gradients."""
        return [job.gradient for job in self.jobs]

    def code_step(self, before: Representation) -> CodeStep | None:
        """Return how long steps on codes are; None if as long as on dense weights.

        Args:
            before: the weights with their values from before the P step.
        """
        measures, ratio = self.settings.measures_steps, self.settings.code_lr_ratio
        plain = self.settings.keeps_latent or (not measures and ratio in (None, 1))
        if plain or not self.moves_codes:
            return None
        if ratio is not None:
            return CodeStep.fixed(ratio, before)
        return CodeStep.measured([job.base.state for job in self.jobs], before)

    def lesson(self, code_step: CodeStep) -> Lesson:
        """Return what the length of the next step on codes follows from."""
        shares = [job.lr / max(job.lr, job.base.state.largest_lr) for job in self.jobs]
        sign = -1.0 if self.jobs[0].ascends else 1.0
        gradients = self.rep.view.all_matrices(self.gradients)
        return Lesson(code_step, gradients, shares, sign, self.placement)

    def sums(self) -> list[Tensor] | None:
        """Return sums of all entries of the gradients; None where none are needed anyway.

        They are the gradients of the values, which the P step does not compute again.
        """
        if not (self.moves_values and self.rep.together and self.rep.parametrization.pull_sums_all):
            return None
        if self.placement.channel is not None:  # what others have added says nothing of these
            return None
        self._pulled = Pulled(self.rep.pull(self.gradients))
        return list(self._pulled.gradients.values())

    def pull(self) -> Exchange[None]:
        """Find out the gradients of the values, unless :meth:`sums` has."""
        if self.moves_values and self._pulled is None:
            self._pulled = yield from self.placement.pull(self.rep, self.gradients)

    def value_step(self, rule: ValueOptimizer) -> ValueStep:
        """Return what the P step is to do."""
        pulled, self._pulled = self._pulled, None
        return ValueStep(
            self.rep,
            self.gradients,
            [job.base.state for job in self.jobs],
            [job.value_lr(rule) for job in self.jobs],
            ascends=self.jobs[0].ascends,
            pulled=None if pulled is None else pulled.gradients,
            sizes={} if pulled is None else pulled.sizes,
        )

    @contextmanager
    def moments_follow(self, rule: ValueOptimizer) -> Iterator[None]:
        """Let moments follow the values that a V step within moves."""
        if not self.values_follow:
            yield
            return
        rep = self.rep
        before = {name: codes.clone() for name, codes in rep.codes.items()}
        yield
        for place, (job, member) in enumerate(zip(self.jobs, rep.members(), strict=True)):
            own = {name: codes.chunk(rep.count)[place] for name, codes in before.items()}
            matrices = member.matrices
            for name in matrices.parametrization.value_shapes(matrices.inner_shape):
                for kind in rule.moments:
                    kept = job.base.state.moment(kind, name)
                    matrices.parametrization.follow_(name, kept, own, matrices)

    def write_(self) -> None:
        """Write the decoded weights, let the latents decay."""
        if not self.written:
            return
        rep, decay = self.rep, self.settings.latent_decay
        parameters = self.weights
        write_decoded_(rep, parameters)
        if self.moves_codes and self.settings.keeps_latent and decay > 0:
            exact = all(p.dtype == rep.dtype for p in parameters)
            weights: list[Tensor] = [*parameters]
            if not exact:
                weights = [member.decode() for member in rep.members()]
            torch._foreach_lerp_(self.targets, weights, decay)

    def finish(self) -> None:
        """Count the step, forget latent weights that are not kept any longer."""
        for job in self.jobs:
            if job.base.needed and not job.base.keeps_latent:
                job.base.state.drop_latent()
            job.base.state.count_step(job.lr)


def runs_of(stack: Stack, jobs: Sequence[Job | None], together: bool) -> Iterator[Run]:
    """Yield the weights of a stack that take a step together.

    Args:
        stack: of neighbours.
        jobs: one for each weight; None for those that take no step.
        together: whether several weights can take a V step at once.
    """

    def key(place: int) -> Any:
        job = jobs[place]
        return None if job is None else (job.key, 0 if together else place)

    def at_once(place: int) -> float:
        job = jobs[place]
        return 0 if job is None else _at_once(job)

    for start, count in stack.runs(key, at_once):
        found = [job for job in jobs[start : start + count] if job is not None]
        yield Run(stack.part(start, count), found)


def _at_once(job: Job) -> float:
    if not job.half_steps.codes:
        return AT_ONCE
    most = AT_ONCE_LATENT if job.settings.keeps_latent else AT_ONCE
    share = 1.0 if job.settings.fraction is None else job.settings.fraction
    return min(most, _SEARCHED / share)
