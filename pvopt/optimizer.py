"""PVOptimizer: any torch optimizer, lifted to discrete-continuous weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pvopt.core.draws import Draws
from pvopt.core.heap import release_free_memory
from pvopt.core.validation import check_integer
from pvopt.engine.agreement import WeightsChangedError
from pvopt.engine.base_contract import (
    check_base,
    check_moment,
    check_parameter,
    check_quantized_group,
    has_modes,
    hooks_silent,
    share_hooks,
)
from pvopt.engine.bindings import Binding, bindings_of, check_owners, check_precision
from pvopt.engine.changes import note_written, settle, untouched
from pvopt.engine.code_steps import CodeStep
from pvopt.engine.consent import consent
from pvopt.engine.exchange import Channel, Exchange, together
from pvopt.engine.finite_check import NonFiniteGradientError, check_finite
from pvopt.engine.group_settings import GroupSettings
from pvopt.engine.jobs import Job, jobs_of
from pvopt.engine.latents import BaseStep, base_sees_latents
from pvopt.engine.lessons import learn
from pvopt.engine.merged_state import MergedState
from pvopt.engine.p_step import p_step, remember
from pvopt.engine.placing import check_rules
from pvopt.engine.replicas import check_replicas
from pvopt.engine.report import StepReport
from pvopt.engine.runs import Run, runs_of
from pvopt.engine.stacks import Stack, stacks_of
from pvopt.engine.stall import StallWatch
from pvopt.engine.state_dict import load_state_dict, state_dict
from pvopt.engine.undo import Undo, interrupts_wait
from pvopt.engine.v_step import stackable, v_step_task
from pvopt.parametrizations.options import SearchOptions
from pvopt.parametrizations.representation import Representation
from pvopt.rules.metric_sources import MetricSource
from pvopt.rules.phases import Phases, Simultaneous
from pvopt.rules.rounding import Nearest, Rounding
from pvopt.rules.subspace import AllGroups, Greedy, Subspace
from pvopt.rules.trust_region import TrustRegion
from pvopt.rules.value_optimizers import AdamValues, ValueOptimizer
from pvopt.weights import QuantizedWeights

__all__ = ["PVOptimizer"]


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

    With :math:`\rho = 0`, the default, the latent weight :math:`b` collects all updates as in
    straight-through estimation: one tensor more, and codes move whatever the learning rate is. It
    begins at the decoded weight, or at the dense one that ``quantize_(keep_dense=True)`` kept. With
    :math:`\rho = 1` none is kept (``b = w``) and :math:`w + s\,u` is rounded, with steps on codes
    that are :math:`s` times as long as on dense weights. Dense parameters always hold the decoded
    weights, so the model stays an ordinary module. Parameters without a representation are left
    to the base optimizer.

    Per-group options, as ordinary ``param_groups`` entries: ``fraction``, ``trust_ratio``,
    ``latent_decay``, ``code_lr_ratio``, ``values_lr_ratio``, ``freeze_codes``, ``freeze_values``,
    ``seed``. A group whose ``lr`` is 0 moves nothing.

    Args:
        base: optimizer over the dense parameters, quantized or not. Its groups are shared, so
            schedulers may be given either, and so are its step hooks. Those that need a closure
            (LBFGS, SAM) do not fit; those that average weights (schedule-free) need a latent.
        representations: :class:`QuantizedWeights`, or a mapping from parameter to representation.
        rounding: which candidate code to take.
        subspace: which groups may change their code. None: all of them with a latent weight, the
            1 % of largest update without one. ``Greedy`` saves most of the search of vector codes.
        trust_ratio: bound ``||w_new - w_old|| <= trust_ratio * ||w_old||`` on the V step of each
            weight, or None.
        latent_decay: :math:`\rho` in [0, 1].
        code_lr_ratio: :math:`s`, how many times as long as on dense weights steps on codes are
            where no latent weight is kept; 1 is the plain step, None measures how long they may
            be (for rules that select a share of the groups).
        values: optimizer of the continuous values.
        phases: which half steps run when.
        metric: in which distance the V step takes the nearest codes; None for the Euclidean.
        search: how hard the search for codes tries.
        check_replicas_every: after how many steps the processes of ``torch.distributed`` compare
            what they hold copies of, by a checksum; None for never.
        seed: of all random draws; the draws of a step depend on the seed, the parameter's place
            and its number of steps only, so a resumed run repeats them.

    Raises:
        TypeError: for arguments of another kind, a base that does not fit, groups of quantized
            weights without a numeric ``lr``, a rounding that does not fit a representation, or a
            metric that does not fit the base optimizer.
        ValueError: for settings out of range, or representations of foreign parameters.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import PVOptimizer, UniformGrid, quantize_
        >>> model = nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
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
        latent_decay: float = 0.0,
        code_lr_ratio: float | None = None,
        values: ValueOptimizer | None = None,
        phases: Phases | None = None,
        metric: MetricSource | None = None,
        search: SearchOptions | None = None,
        seed: int = 0,
        check_replicas_every: int | None = None,
    ) -> None:
        rounding = Nearest() if rounding is None else rounding
        if subspace is None:
            subspace = Greedy(0.01) if latent_decay == 1 else AllGroups()
        values = AdamValues() if values is None else values
        phases = Simultaneous() if phases is None else phases
        search = SearchOptions() if search is None else search
        for name, value, kind in (
            ("base", base, Optimizer),
            ("representations", representations, Mapping),
            ("rounding", rounding, Rounding),
            ("subspace", subspace, Subspace),
            ("values", values, ValueOptimizer),
            ("phases", phases, Phases),
            ("search", search, SearchOptions),
            *([] if metric is None else [("metric", metric, MetricSource)]),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        if check_replicas_every is not None:
            check_integer("check_replicas_every", check_replicas_every, 1, 1 << 30)
        if isinstance(base, PVOptimizer):
            raise TypeError(f"base must be a first-order optimizer, got {type(base).__name__}")
        check_base(base)
        for rep in representations.values():
            rounding.check(rep.parametrization)
        settings = GroupSettings(
            fraction=getattr(subspace, "fraction", None),
            trust_ratio=trust_ratio,
            latent_decay=latent_decay,
            code_lr_ratio=code_lr_ratio,
            values_lr_ratio=values.lr_ratio,
            seed=seed,
        )
        # __setstate__ is the part of Optimizer's construction that does not add groups: the
        # groups are the base's own, under one name, so that they cannot drift apart.
        super().__setstate__({"base": base, "defaults": base.defaults})
        self.representations = representations
        self.rounding = rounding
        self.subspace = subspace
        self.values = values
        self.phases = phases
        self.metric = metric
        self.search = search
        self.check_replicas_every = check_replicas_every
        self.report = StepReport({}, {})
        self._watch = StallWatch()
        self._default_settings = settings
        check_owners(base, representations)
        self._bindings = list(bindings_of(representations, values))
        for binding in self._bindings:
            check_precision(binding)
        for group in self.param_groups:
            self._settings(group)  # refuses bad options before anything is changed
        if metric is not None:
            metric.check(base, {binding.name: binding.rep for binding in self._bindings})
        self._stacks: list[Stack] = []
        self._take_over()
        self._complete_groups()

    def _take_over(self) -> None:
        """Let what is asked of the base itself be done around whole steps, on final weights."""
        share_hooks(self.base, self)
        if has_modes(self.base):
            self._modes = {name: getattr(self.base, name) for name in ("train", "eval")}
            vars(self.base).update(train=self.train, eval=self.eval)

    # The groups live in the base optimizer alone.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # type: ignore[override]
        self.base.param_groups = groups

    @property
    def state(self) -> MergedState:  # type: ignore[override]
        """The base's entries and ours by parameter, under the names of :meth:`state_dict`."""
        ours = {id(binding.parameter): binding.state for binding in self._bindings}
        joined = {id(binding.parameter) for binding in self._bindings if binding.joined}
        present = (p for group in self.param_groups for p in group["params"])
        shown = (p for p in present if p in self.base.state or id(p) in joined)
        return MergedState(self.base.state, ours, shown)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its quantized parameters join from the next step."""
        self._settings(param_group)  # refuses bad options
        self.base.add_param_group(param_group)
        self._complete_groups()

    def _complete_groups(self) -> None:
        """Let all groups show all options, and weights have the latents that these ask for."""
        bindings = self.bindings_by_id()
        self._adopt(bindings)
        for binding in bindings.values():
            check_rules(binding.name, binding.placement, self.subspace, self.metric)
        for group in self.param_groups:
            settings = self._settings(group)
            group.update(asdict(settings))
            for p in group["params"]:
                if id(p) not in bindings:
                    continue
                state, start = bindings[id(p)].state, bindings[id(p)].start
                if settings.keeps_latent:
                    state.begin_latent(start)
                    continue
                if start is not None:
                    start.forget()
                if settings.measures_steps:
                    rule = replace(self.subspace, fraction=settings.fraction)  # type: ignore
                    binding = bindings[id(p)]
                    matrices = binding.rep.matrices.count
                    state.code_memory(
                        rule.count(binding.placement.num_groups(binding.rep) // matrices)
                    )

    def _adopt(self, bindings: Mapping[int, Binding]) -> None:
        """Stack the weights of all groups; those of other optimizers are not for this one."""
        present = (bindings.get(id(p)) for group in self.param_groups for p in group["params"])
        new = [binding for binding in present if binding is not None and not binding.owned]
        for binding in new:
            binding.owned = True
        if new:
            self._stacks = stacks_of([binding for binding in self._bindings if binding.owned])

    def _options(self, group: Mapping[str, Any]) -> GroupSettings:
        """Return a group's options."""
        return GroupSettings.of(group, self._default_settings, self.subspace)

    def _settings(self, group: Mapping[str, Any]) -> GroupSettings:
        """Return a group's options; refuse bad ones, and groups whose weights could not move."""
        settings = self._options(group)
        params = group["params"]
        own = {id(p) for p in ([params] if isinstance(params, Tensor) else params)}
        if any(id(binding.parameter) in own for binding in self._bindings):
            check_quantized_group(self.base, group, settings)
        return settings

    def named_representations(self) -> Iterator[tuple[str, nn.Parameter, Representation]]:
        """Yield name, present parameter and representation of every quantized weight."""
        for binding in self._bindings:
            yield binding.name, binding.parameter, binding.rep

    def bindings_by_id(self) -> dict[int, Binding]:
        """Return the quantized weights by the ``id`` of their present parameters."""
        found: dict[int, Binding] = {}
        moved = False
        present = {id(p) for group in self.param_groups for p in group["params"]}
        for binding in self._bindings:
            parameter = binding.parameter
            moved |= binding.move_(present)
            shape = binding.placement.whole_shape(binding.rep)
            check_parameter(binding.name, parameter, shape)
            other = found.setdefault(id(parameter), binding)
            if other is not binding:
                raise WeightsChangedError(
                    f"{other.name!r} and {binding.name!r} are one parameter now, and have codes "
                    "of their own: tie weights before quantize_"
                )
        if moved:
            self._complete_groups()
        return found

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step on everything that has a gradient.

        Args:
            closure: evaluates the loss at the decoded weights and calls ``backward``; called once.

        Returns:
            The closure's loss, or None.

        Raises:
            NonFiniteGradientError: if a gradient holds NaN or infinity.
            WeightsChangedError: if the model holds other weights than codes and values say.
            ProcessesError: if another process cannot go on, or holds another copy of a weight.
            RuntimeError: in inference mode, and while a CUDA graph is captured.

        Whatever is raised, here, by the base or by a rule: weights, latent weights, values, codes
        and counters are as before the step then; an interrupt undoes the step, too.
        """
        check_moment()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        jobs, runs = self._checked_jobs()
        # Where states are made among much that is needed for a moment, holes are left.
        begins = any(run.begins for run in runs)
        undo = Undo(self.base, runs)
        try:
            with (
                hooks_silent(self.base),
                base_sees_latents(self.base, [job.base for job in jobs.values()]),
            ):
                self.base.step()
            code_steps = [run.code_step(undo.before(place)) for place, run in enumerate(runs)]
            value_steps = [(run, run.value_step(self.values)) for run in runs if run.moves_values]
            p_step((step for _, step in value_steps), self.values)
            remember((step for run, step in value_steps if run.values_follow), self.values)
            tasks = (
                self._v_step(run, undo, code_step, begins=begins)
                for run, code_step in zip(runs, code_steps, strict=True)
                if run.moves_codes
            )
            moving = [run for run in runs if run.moves_codes]
            changed = dict(zip((run.names for run in moving), together(tasks), strict=True))
            groups = {name: run.num_groups for run in moving for name in run.names}
            pairs = zip(runs, code_steps, strict=True)
            learn(run.lesson(taken) for run, taken in pairs if taken is not None)
        except BaseException:
            with interrupts_wait():
                undo()
            raise
        with interrupts_wait():
            remember((step for run, step in value_steps if not run.values_follow), self.values)
            for run in runs:
                run.write_()
                run.finish()
            for job in jobs.values():
                job.binding.joined = True
            note_written([job.binding for job in jobs.values() if job.base.written])
            self.report = StepReport(changed, groups)
        if begins:
            release_free_memory()
        self._watch.observe(changed.values(), map(self._options, self.param_groups))
        return loss

    def _checked_jobs(self) -> tuple[dict[str, Job], list[Run]]:
        """Collect what there is to do; refuse it as a whole before anything is changed."""
        bindings = self.bindings_by_id()
        self._adopt(bindings)
        for stack in self._stacks:
            stack.refresh()
        jobs = jobs_of(self.base, bindings, self.phases, self._options)
        written = [job.binding for job in jobs.values() if job.base.written]
        flags = untouched(written)
        names = {key: binding.name for key, binding in bindings.items()}
        # The largest first, while least is kept of what others have found.
        runs = sorted(self._runs(jobs), key=lambda run: run.size, reverse=True)
        sums: list[Tensor] = []
        summed: set[int] = set()
        for run in runs:
            own = run.sums()
            if own is not None:
                sums += own
                summed |= {id(job.base.parameter) for job in run.jobs}
        error, same = None, True
        try:
            same = check_finite(self.param_groups, names, flags or (), sums, summed)
        except NonFiniteGradientError as found:
            error = found
        channels = self.channels()
        asked = consent(channels, error, flags is None or not same)
        changed, *_ = together([asked, *(run.pull() for run in runs)])
        if changed:
            together([settle(written, channels)])
        every = self.check_replicas_every
        if every is not None:
            due = [b for b in self._bindings if b.owned and b.state.step % every == 0]
            check_replicas(due)
        return jobs, runs

    def channels(self) -> list[Channel]:
        """Return the processes that hold other rows of the weights."""
        found = (binding.placement.channel for binding in self._bindings if binding.owned)
        return list(dict.fromkeys(channel for channel in found if channel is not None))

    def _runs(self, jobs: Mapping[str, Job]) -> Iterator[Run]:
        """Yield the weights that take a step together."""
        for stack in self._stacks:
            own = [jobs.get(binding.name) for binding in stack.bindings]
            at_once = stackable(stack.rep, metric=self.metric, subspace=self.subspace)
            yield from runs_of(stack, own, at_once)

    def _v_step(
        self, run: Run, undo: Undo, code_step: CodeStep | None, *, begins: bool
    ) -> Exchange[Tensor]:
        """Move codes towards the targets; return how many groups of each weight changed."""
        if begins:
            release_free_memory()
        settings, subspace, first = run.settings, self.subspace, run.jobs[0]
        if settings.fraction is not None:
            subspace = replace(subspace, fraction=settings.fraction)  # type: ignore[type-var]
        trust = None if settings.trust_ratio is None else TrustRegion(settings.trust_ratio)
        metric = None
        if self.metric is not None:  # one weight at a time, then
            metric = self.metric.of(
                first.binding.name, first.base.parameter, first.group, self.base
            )
        with run.moments_follow(self.values):
            counts = yield from v_step_task(
                run.rep,
                run.targets,
                rounding=self.rounding,
                subspace=subspace,
                trust_region=trust,
                metric=metric,
                options=self.search,
                draws=Draws.of_step(settings.seed, run.names, first.base.state.step, run.device),
                code_step=code_step,
                gradients=run.gradients if first.base.state.step == 0 else None,
                before_moves=undo.keep_codes,
                placement=run.placement,
            )
        return counts

    def train(self) -> None:
        """Let a base that averages weights (schedule-free) go on where it takes gradients."""
        self._switch("train")

    def eval(self) -> None:
        """Let a base that averages weights (schedule-free) put its average into the latents.

        The model keeps the decoded weights. Bases without ``eval()`` have nothing to do.
        """
        self._switch("eval")

    @torch.no_grad()
    def _switch(self, mode: str) -> None:
        if not has_modes(self.base):
            return
        bindings, state = self.bindings_by_id(), self.state
        steps = [
            BaseStep(p, p.data, bindings[id(p)].state, True, needed=True, written=False)
            for group in self.param_groups
            for p in group["params"]
            if id(p) in bindings and "pv.latent" in state[p]
        ]
        with base_sees_latents(self.base, steps):
            self._modes[mode]()

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and, beside it, codes, values, moments and latents.

        Holds tensors and primitives only, so ``torch.load(weights_only=True)`` reads it. Tensors
        are references, as in every torch optimizer.
        """
        return state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state losslessly, and the decoded weights with it.

        Args:
            state_dict: of a PVOptimizer over parameters of the same shapes and parametrizations.

        Raises:
            ValueError: if the state is of other parameters or representations; nothing has changed
                then.
        """
        load_state_dict(self, state_dict)
        self._complete_groups()

    def __getstate__(self) -> dict[str, Any]:
        # As in torch, hooks do not travel; "step" is a scheduler's wrapper around this instance.
        skipped = ("step", "_optimizer_", "_modes")
        return {k: v for k, v in self.__dict__.items() if not k.startswith(skipped)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._take_over()
