"""A step is taken whole or not at all."""

# torch.optim is built on _foreach_mul; its name begins with an underscore all the same.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pvopt.parametrizations.representation import Representation

from .placement import local
from .runs import Run
from .writing import write_decoded_

__all__ = ["Undo", "interrupts_wait"]


class Undo:
    """What it takes to undo a step until its weights are written.

    Weights follow from codes and values; the memory of the weights keeps the latent weights;
    codes are kept as they move; the moments of values change when nothing can fail any longer, but
    where they follow codes. So what is kept beside is of the size of the values, of the parameters
    that are not quantized, and of the codes that move. Moments of the base optimizer are not kept:
    one that has been undone has seen the gradient.

    Args:
        base: the optimizer of the dense weights, before its step.
        runs: the quantized weights.
    """

    def __init__(self, base: Optimizer, runs: Sequence[Run]) -> None:
        self._base = base
        self._known = set(base.state)
        self._groups = [(group, dict(group)) for group in base.param_groups]
        self._runs = runs
        jobs = [job for run in runs for job in run.jobs]
        self._states = [(job.base.state, job.base.state.counters()) for job in jobs]
        quantized = {id(job.base.parameter) for job in jobs}
        self._tensors = [
            local(p.data)
            for group in base.param_groups
            for p in group["params"]
            if p.grad is not None and id(p) not in quantized and not _is_zero(group)
        ]
        places: list[int | None] = []
        for run in runs:
            moves = run.moves_values or run.values_follow
            places.append(len(self._tensors) if moves else None)
            if moves:
                self._tensors += run.rep.values.values()
            if run.values_follow:
                self._tensors += [m for job in run.jobs for m in job.base.state.moments()]
        self._copies = torch._foreach_mul(self._tensors, 1) if self._tensors else []
        self._places = places
        self._codes: list[Callable[[], None]] = []

    def before(self, place: int) -> Representation:
        """Return the present codes of a run, with the values from before the step."""
        rep, first = self._runs[place].rep, self._places[place]
        if first is None:
            return rep
        copies = self._copies[first : first + len(rep.values)]
        return rep.with_values(dict(zip(rep.values, copies, strict=True)))

    def keep_codes(self, rep: Representation, groups: Tensor) -> None:
        """Keep the codes of groups that may move.

        Args:
            rep: of the weights.
            groups: ``[n]`` their numbers.
        """
        every = sum(rep.codes[name].nbytes for name in rep.moving)
        some = len(groups) * every // rep.num_groups + groups.nbytes
        if rep.parametrization.values_follow_codes or some > every:
            for name in rep.moving:
                codes = rep.codes[name]
                self._codes.append(partial(_write, codes, codes.clone()))
        else:
            self._codes.append(partial(rep.write_codes_, groups, rep.group_codes(groups)))

    @torch.no_grad()
    def __call__(self) -> None:
        """Undo the step."""
        for put_back in reversed(self._codes):
            put_back()
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._copies)
        for run in self._runs:
            for job in run.jobs:
                job.base.undo_()
            if run.written:
                write_decoded_(run.rep, run.weights)
        for state, counters in self._states:
            state.restore_counters(counters)
        for p in [p for p in self._base.state if p not in self._known]:
            del self._base.state[p]
        for group, before in self._groups:
            group.clear()
            group.update(before)


def _is_zero(group: Mapping[str, Any]) -> bool:
    """Whether a group moves nothing."""
    lr = group.get("lr")
    return isinstance(lr, int | float) and lr == 0


def _write(tensor: Tensor, copy: Tensor) -> None:
    tensor.copy_(copy)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let an interrupt from the keyboard wait until the block is left.

    Only the main thread is interrupted, and only a Python handler can be made to wait.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: arrived.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            handler(*arrived[-1])
