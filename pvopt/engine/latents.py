"""The base optimizer's step on latent weights in place of decoded ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam

from pvopt_kernels.ops import copy_into

from .placement import WHOLE, Placement
from .state import WeightState

__all__ = ["BaseStep", "base_sees_latents"]

# Other optimizers refuse sparse gradients, or nobody knows; all but SparseAdam take dense ones.
_TAKE_SPARSE = (SGD, Adagrad, SparseAdam)


@dataclass(eq=False)
class BaseStep:
    """What the base optimizer does to one weight.

    Args:
        parameter: the dense weight.
        data: ``[*shape]``, its entries before the step.
        state: what is kept for it.
        keeps_latent: whether updates collect in a latent weight.
        needed: whether the update is of any use; else the base does not see the gradient.
        written: whether the weight is written after the step, so that its memory is free meanwhile.
        target: ``[*shape]`` after the step: the latent weight, or the weight plus the update.
        latent_before: ``[*shape]``, the latent weight before the step, once there is a copy.
        placement: which rows all of these are of.
    """

    parameter: nn.Parameter
    data: Tensor
    state: WeightState
    keeps_latent: bool
    needed: bool
    written: bool
    target: Tensor | None = None
    latent_before: Tensor | None = None
    placement: Placement = WHOLE

    def undo_(self) -> None:
        """Give the latent weight back what it held before the step."""
        if self.latent_before is not None:
            self.state.latent().copy_(self.latent_before)


@contextmanager
def base_sees_latents(base: Optimizer, steps: Sequence[BaseStep]) -> Iterator[None]:
    """Let the base optimizer see latent weights in place of decoded ones.

    The storage is exchanged, not copied, and the parameter stays the same object. Weights of low
    precision are stepped in the values' precision, so that small updates survive: there another
    parameter stands in within the groups and the state of the base, because a parameter whose
    data change their type loses its gradient accumulator and every hook on that.

    Args:
        base: the optimizer.
        steps: each gets its target when the block is left without an error.
    """
    _keep_latents([step for step in steps if step.needed and step.keeps_latent and step.written])
    parts = [_Part(step) for step in steps]
    lists = [(group, group["params"]) for group in base.param_groups]
    try:
        for part in parts:
            part.begin(takes_sparse=isinstance(base, _TAKE_SPARSE))
        seen = {id(part.step.parameter): part.seen for part in parts if part.stands_in}
        for group, params in lists if seen else ():
            group["params"] = [seen.get(id(p), p) for p in params]
        _rename(base, ((part.step.parameter, part.seen) for part in parts if part.stands_in))
        yield
    finally:
        _rename(base, ((part.seen, part.step.parameter) for part in parts if part.stands_in))
        for group, params in lists:
            group["params"] = params
        for part in parts:
            part.end()


class _Part:
    """One weight in the base's step: what the base sees, and what is put back."""

    def __init__(self, step: BaseStep) -> None:
        self.step = step
        self.seen = step.parameter
        self.gradient = step.parameter.grad

    @property
    def stands_in(self) -> bool:
        """Whether the base sees another parameter."""
        return self.seen is not self.step.parameter

    def begin(self, *, takes_sparse: bool) -> None:
        """Let the base see the latent weight, or the decoded one in the values' precision."""
        step, gradient = self.step, self.gradient
        if not step.needed:
            step.parameter.grad = None
            return
        if gradient is not None and gradient.is_sparse and not takes_sparse:
            gradient = gradient.to_dense()
        rep = step.state.rep
        wraps = step.keeps_latent and step.placement.wraps
        if step.parameter.dtype != rep.dtype or wraps:
            rows = step.state.latent() if step.keeps_latent else rep.decode()
            seen = nn.Parameter(step.placement.wrapped(rows))
            vars(seen).update(vars(step.parameter))  # some optimizers look for marks
            seen.grad = None if gradient is None else gradient.to(rep.dtype)
            self.seen = seen
            return
        if step.keeps_latent:
            step.parameter.data = step.state.latent()
        step.parameter.grad = gradient

    def end(self) -> None:
        """Take the target, put everything back."""
        step, seen = self.step, self.step.placement.unwrapped(self.seen)
        if step.needed and step.keeps_latent:
            step.target = step.state.latent()
            if not _same(seen, step.target):  # some assign new data
                step.target.copy_(seen.data)
        elif step.needed:
            step.target = step.data if _same(seen, step.data) else seen.data
        if not (step.placement.wraps or _same(step.parameter, step.data)):
            step.parameter.data = step.data
        step.parameter.grad = self.gradient


def _same(parameter: Tensor, data: Tensor) -> bool:
    """Whether a parameter's entries are these, in the same place and order."""
    return parameter.data_ptr() == data.data_ptr() and parameter.stride() == data.stride()


def _keep_latents(steps: Sequence[BaseStep]) -> None:
    """Copy the latent weights, so that a step can be undone.

    The decoded weights follow from codes and values, so their memory is free until they are
    written again; only a weight of lower precision is too small for the copy.
    """
    latents = [step.state.latent() for step in steps]
    places = [
        step.data if step.data.dtype == latent.dtype else torch.empty_like(latent)
        for step, latent in zip(steps, latents, strict=True)
    ]
    alike: dict[torch.device, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for step, place, latent in zip(steps, places, latents, strict=True):
        alike[place.device].append((place, latent))
        step.latent_before = place
    for pairs in alike.values():
        copy_into([place for place, _ in pairs], [latent for _, latent in pairs])


def _rename(base: Optimizer, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Let other parameters have the state of some."""
    for old, new in pairs:
        if old in base.state:
            base.state[new] = base.state.pop(old)
