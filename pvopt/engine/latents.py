"""The base optimizer's step on latent weights in place of decoded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from .state import WeightState

__all__ = ["BaseStep", "base_sees_latents"]


@dataclass(eq=False)
class BaseStep:
    """What the base optimizer does to one weight.

    Args:
        parameter: the dense weight.
        state: what is kept for it.
        keeps_latent: whether updates collect in a latent weight.
        needed: whether the update is of any use; else the base does not see the gradient.
        target: ``[*shape]`` after the step: the latent weight, or the weight plus the update.
    """

    parameter: nn.Parameter
    state: WeightState
    keeps_latent: bool
    needed: bool
    target: Tensor | None = None


@contextmanager
def base_sees_latents(steps: Sequence[BaseStep]) -> Iterator[None]:
    """Let the base optimizer see latent weights in place of decoded ones.

    The storage is exchanged, not copied, so it costs nothing where the dtypes agree. Weights
    of low precision are stepped in the values' precision: small updates survive.

    Args:
        steps: each gets its target when the block is left.
    """
    hidden: list[tuple[BaseStep, Tensor | None]] = []
    exchanged: list[tuple[BaseStep, Tensor, Tensor | None]] = []
    try:
        for step in steps:
            parameter, rep, gradient = step.parameter, step.state.rep, step.parameter.grad
            if not step.needed:
                hidden.append((step, gradient))
                parameter.grad = None
                continue
            if not step.keeps_latent:
                step.state.drop_latent()
                if parameter.dtype == rep.dtype:
                    continue  # the base works on the decoded weight itself
            data = parameter.data
            exchanged.append((step, data, gradient))
            parameter.grad = None
            parameter.data = step.state.latent() if step.keeps_latent else rep.decode()
            if gradient is not None:
                same = gradient.dtype == parameter.dtype
                parameter.grad = gradient if same else gradient.to(parameter.dtype)
        yield
    finally:
        for step in steps:
            step.target = step.parameter if step.needed else None
        for step, data, gradient in exchanged:
            step.target = step.parameter.data
            step.parameter.grad = None
            step.parameter.data = data
            step.parameter.grad = gradient
        for step, gradient in hidden:
            step.parameter.grad = gradient
