"""PVOptimizer: any torch optimizer, lifted to discrete-continuous weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pvopt.engine import state as optimizer_state
from .engine.finite_check import check_finite
from .engine.group_settings import GroupSettings
from .metrics.sources import Metric
from .parametrizations.representation import Representation
from .engine.p_step import ValueStep, p_step
from .weights import QuantizedWeights
from .rules.rounding import Nearest, Rounding
from .engine.column_descent import RowMetric
from .rules.phases import Phases, Schedule, Simultaneous
from .engine.report import StepReport
from .rules.subspace import Greedy, Subspace
from .rules.trust_region import TrustRegion
from .rules.value_optimizers import AdamValues, ValueOptimizer
from .engine.v_step import v_step

__all__ = ["PVOptimizer"]


@dataclass
class _Job:
    """One quantized weight in one step."""

    name: str
    parameter: nn.Parameter
    rep: Representation
    state: dict[str, Any]
    group: dict[str, Any]
    settings: GroupSettings
    phases: Phases
    lr: float
    target: Tensor | None = None

    @property
    def keeps_latent(self) -> bool:
        return self.settings.latent_decay < 1 and not self.settings.freeze_codes

    @property
    def needs_update(self) -> bool:
        """Whether the base optimizer's update of the dense weight is of any use."""
        return self.keeps_latent or self.phases.codes


class PVOptimizer(Optimizer):
    r"""Lift any torch optimizer to weights of the form decode(codes, values).

    One step, for every quantized weight ``w = decode(z, v)`` with a gradient :math:`g`:

    .. math::
        b &\leftarrow b + u && \text{the base optimizer's update, on the latent weight} \\
        v &\leftarrow \mathrm{step}\big(v,\ (\partial w/\partial v)' g\big)
            && \text{P step} \\
        z_g &\leftarrow \mathrm{round}(b_g),\ g \in S && \text{V step on a subspace} \\
        w &\leftarrow \mathrm{decode}(z, v) \\
        b &\leftarrow (1 - \rho)\, b + \rho\, w && \text{latent decay}

    With :math:`\rho = 1` no latent weight is kept (``b = w``), with :math:`\rho = 0` it collects
    all updates as in straight-through estimation. Dense parameters always hold the decoded
    weights, so the model stays an ordinary module. Parameters without a representation are left
    to the base optimizer.

    Per-group options, as ordinary ``param_groups`` entries: ``fraction``, ``trust_ratio``,
    ``latent_decay``, ``values_lr_ratio``, ``freeze_codes``, ``freeze_values``, ``seed``. A group
    whose ``lr`` is 0 moves nothing.

    Args:
        base: optimizer over the dense parameters, quantized or not. Its groups are shared, so
            schedulers may be given either. Optimizers that must call a closure repeatedly (LBFGS)
            do not fit.
        representations: :class:`QuantizedWeights`, or a mapping from parameter to representation.
        rounding: which candidate code to take.
        subspace: which groups may change their code.
        trust_ratio: bound ``||w_new - w_old|| <= trust_ratio * ||w_old||`` on the V step of each
            weight, or None.
        latent_decay: :math:`\rho` in [0, 1].
        values: optimizer of the continuous values.
        schedule: which half steps run when.
        metric: in which distance the V step takes the nearest codes; None for the Euclidean.
        seed: of all random draws; the draws of a step depend on the seed, the parameter's place
            and its number of steps only, so a resumed run repeats them.

    Raises:
        TypeError: for arguments of another kind, a rounding that does not fit a representation, or
            a metric that does not fit the base optimizer.
        ValueError: for settings out of range, or representations of foreign parameters.

    Example:
        >>> from pvopt import UniformGrid, quantize_
        >>> model = nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(2))
        >>> optimizer = PVOptimizer(torch.optim.Adam(model.parameters(), lr=0.01), weights)
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
        >>> torch.equal(model.weight, weights["weight"].decode())
        True

    References:
        PV-Tuning (arXiv 2405.14852), algorithms 1 and 2.
    """

    base: Optimizer

    def __init__(
        self,
        base: Optimizer,
        representations: QuantizedWeights | Mapping[nn.Parameter, Representation],
        *,
        rounding: Rounding | None = None,
        subspace: Subspace | None = None,
        trust_ratio: float | None = None,
        latent_decay: float = 1.0,
        values: ValueOptimizer | None = None,
        schedule: Schedule | None = None,
        metric: Metric | None = None,
        seed: int = 0,
    ) -> None:
        rounding = Nearest() if rounding is None else rounding
        subspace = Greedy(0.01) if subspace is None else subspace
        values = AdamValues() if values is None else values
        schedule = Simultaneous() if schedule is None else schedule
        for name, value, kind in (
            ("base", base, Optimizer),
            ("representations", representations, Mapping),
            ("rounding", rounding, Rounding),
            ("subspace", subspace, Subspace),
            ("values", values, ValueOptimizer),
            ("schedule", schedule, Schedule),
            *([] if metric is None else [("metric", metric, Metric)]),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        if isinstance(base, PVOptimizer | torch.optim.LBFGS):
            raise TypeError(f"base must be a first-order optimizer, got {type(base).__name__}")
        for rep in representations.values():
            rounding.check(rep.parametrization)
        settings = GroupSettings(
            fraction=getattr(subspace, "fraction", None),
            trust_ratio=trust_ratio,
            latent_decay=latent_decay,
            values_lr_ratio=values.lr_ratio,
            seed=seed,
        )
        # __setstate__ is the part of Optimizer's construction that does not add groups: the
        # groups are the base's own, under one name, so that they cannot drift apart.
        super().__setstate__({"base": base, "defaults": base.defaults, "state": defaultdict(dict)})
        self.representations = representations
        self.rounding = rounding
        self.subspace = subspace
        self.values = values
        self.schedule = schedule
        self.metric = metric
        if metric is not None:
            metric.check(base, {name: rep for name, _, rep in self.named_representations()})
        self.report = StepReport({}, {})
        self._default_settings = settings
        # Hooks that were registered with the base must see final weights: they move up here.
        for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            getattr(self, hooks).update(getattr(base, hooks))
            getattr(base, hooks).clear()
        for group in self.param_groups:
            self._complete_group(group)
        known = {id(p) for group in self.param_groups for p in group["params"]}
        if not isinstance(representations, QuantizedWeights):
            for p, rep in representations.items():
                if not isinstance(p, Tensor) or id(p) not in known:
                    raise ValueError(
                        "representations must map parameters of base to Representation, got key "
                        f"{type(p).__name__} that is in none of its groups"
                    )
                if tuple(p.shape) != rep.shape:
                    raise ValueError(
                        f"a representation of shape {list(rep.shape)} was given for a parameter "
                        f"of shape {list(p.shape)}"
                    )

    # The groups live in the base optimizer alone.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # type: ignore[override]
        self.base.param_groups = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its quantized parameters join from the next step."""
        GroupSettings.of(param_group, self._default_settings, self.subspace)  # validates
        self.base.add_param_group(param_group)
        self._complete_group(self.param_groups[-1])

    def _complete_group(self, group: dict[str, Any]) -> None:
        group.update(asdict(GroupSettings.of(group, self._default_settings, self.subspace)))

    def named_representations(self) -> Iterator[tuple[str, nn.Parameter, Representation]]:
        """Yield name, present parameter and representation of every quantized weight."""
        if isinstance(self.representations, QuantizedWeights):
            for name, rep in self.representations.items():
                yield name, self.representations.parameter(name), rep
            return
        for number, (parameter, rep) in enumerate(self.representations.items()):
            yield f"parameter {number}", parameter, rep

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step on everything that has a gradient.

        Args:
            closure: evaluates the loss at the decoded weights and calls ``backward``; called once.

        Returns:
            The closure's loss, or None.

        Raises:
            NonFiniteGradientError: if a gradient holds NaN or infinity; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        quantized = {id(p): (name, rep) for name, p, rep in self.named_representations()}
        check_finite(self.param_groups, {key: name for key, (name, _) in quantized.items()})
        jobs = self._jobs(quantized)
        with self._latents_in_place(jobs):
            self.base.step()
        changed: dict[str, int] = {}
        p_step(self._value_steps(jobs), self.values)
        for job in jobs:
            if job.lr != 0 and (job.phases.codes or job.phases.values):
                self._v_step_and_write(job, changed)
            job.target = None  # frees a copy of the weight before the next one is decoded
            job.state["step"] += 1
        groups = {j.name: j.rep.layout.num_groups for j in jobs if j.name in changed}
        self.report = StepReport(changed, groups)
        return loss

    def _jobs(self, quantized: Mapping[int, tuple[str, Representation]]) -> list[_Job]:
        """Collect the quantized weights that have a gradient, from those by parameter id."""
        jobs = []
        for group in self.param_groups:
            settings = GroupSettings.of(group, self._default_settings, self.subspace)
            for p in group["params"]:
                if p.grad is None or id(p) not in quantized:
                    continue
                name, rep = quantized[id(p)]
                state = optimizer_state.ensure(self.state[p], rep, self.values)
                planned = self.schedule.phases(int(state["step"]))
                phases = Phases(
                    values=planned.values and not settings.freeze_values,
                    codes=planned.codes and not settings.freeze_codes,
                )
                jobs.append(_Job(name, p, rep, state, group, settings, phases, float(group["lr"])))
        return jobs

    @contextmanager
    def _latents_in_place(self, jobs: list[_Job]) -> Iterator[None]:
        """Let the base optimizer see latent weights in place of decoded ones.

        The storage is exchanged, not copied, so it costs nothing where the dtypes agree. Weights
        of low precision are stepped in the values' precision: small updates survive.
        """
        decoded = [(job, job.parameter.data, job.parameter.grad) for job in jobs]
        try:
            for job, data, grad in decoded:
                if not job.needs_update:
                    job.parameter.grad = None
                    continue
                if job.keeps_latent:
                    latent = optimizer_state.ensure_latent(job.state, job.rep)
                else:
                    job.state.pop("latent", None)
                    latent = data if data.dtype == job.rep.dtype else job.rep.decode()
                job.parameter.grad = None
                job.parameter.data = latent
                job.parameter.grad = None if grad is None else grad.to(latent.dtype)
            yield
        finally:
            for job, data, grad in decoded:
                if job.needs_update:
                    job.target = job.parameter.data
                job.parameter.grad = None
                job.parameter.data = data
                job.parameter.grad = grad

    def _value_steps(self, jobs: list[_Job]) -> Iterator[ValueStep]:
        """Yield the weights whose values are to move."""
        for job in jobs:
            if job.lr != 0 and job.phases.values:
                assert job.parameter.grad is not None
                lr = job.lr * job.settings.values_lr_ratio
                yield ValueStep(job.rep, job.parameter.grad, job.state, lr)

    def _v_step_and_write(self, job: _Job, changed: dict[str, int]) -> None:
        """Move codes towards the target, write the decoded weight, let the latent decay."""
        settings, parametrization = job.settings, job.rep.parametrization
        decoded = parametrization.decode_groups(job.rep)  # [G, g]
        if job.phases.codes:
            assert job.target is not None
            subspace = self.subspace
            if settings.fraction is not None:
                subspace = replace(subspace, fraction=settings.fraction)  # type: ignore[type-var]
            trust = None if settings.trust_ratio is None else TrustRegion(settings.trust_ratio)
            before = job.rep.codes.clone() if parametrization.values_follow_codes else None
            changed[job.name] = v_step(
                job.rep,
                job.target,
                decoded,
                rounding=self.rounding,
                subspace=subspace,
                trust_region=trust,
                metric=self._metric(job),
                generator=self._generator(job),
            )
            if before is not None and changed[job.name]:
                for name in job.rep.values:
                    for moment in self.values.moments:
                        kept = job.state[f"values.{name}.{moment}"]
                        parametrization.carry_(name, kept, before, job.rep)
        weight = parametrization.merge(decoded, job.rep.shape)
        if job.phases.codes and job.keeps_latent and settings.latent_decay > 0:
            assert job.target is not None
            job.target.lerp_(weight, settings.latent_decay)
        job.parameter.copy_(weight)

    def _metric(self, job: _Job) -> Tensor | RowMetric | None:
        """Return the metric of one weight's V step."""
        if self.metric is None:
            return None
        return self.metric.of(job.name, job.parameter, job.group, self.base)

    def _generator(self, job: _Job) -> torch.Generator:
        """Return the generator of one weight's step, from the seed, the name and the step."""
        return optimizer_state.generator(
            job.settings.seed, job.name, int(job.state["step"]), job.rep.codes.device
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and, beside it, codes, values, moments and latents.

        Holds tensors and primitives only, so ``torch.load(weights_only=True)`` reads it. Tensors
        are references, as in every torch optimizer.
        """
        return optimizer_state.state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state losslessly, and the decoded weights with it.

        Args:
            state_dict: of a PVOptimizer over parameters of the same shapes and parametrizations.

        Raises:
            ValueError: if the state is of other parameters or representations; nothing has changed
                then.
        """
        optimizer_state.load_state_dict(self, state_dict)
        for group in self.param_groups:
            self._complete_group(group)

    def __getstate__(self) -> dict[str, Any]:
        # As in torch, hooks do not travel; "step" is a scheduler's wrapper around this instance.
        skipped = ("step", "_optimizer_")
        return {k: v for k, v in self.__dict__.items() if not k.startswith(skipped)}
