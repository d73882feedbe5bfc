"""What an optimizer must be like to serve as the base: known before it steps."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .agreement import WeightsChangedError
from .group_settings import GroupSettings

__all__ = [
    "check_base",
    "check_moment",
    "check_parameter",
    "check_quantized_group",
    "has_modes",
    "hooks_silent",
    "share_hooks",
]

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def check_base(base: Optimizer) -> None:
    """Refuse optimizers that cannot be stepped once, without a closure.

    Raises:
        TypeError: with the reason.
    """
    kind = type(base).__name__
    if isinstance(base, LBFGS):
        raise TypeError(f"base must be a first-order optimizer, got {kind}")
    if hasattr(base, "first_step") and hasattr(base, "second_step"):
        raise TypeError(
            f"base must take one step on one gradient, got {kind} with first_step and second_step; "
            "perturb the weights in the training loop, put them back, then step PVOptimizer"
        )
    for name, parameter in inspect.signature(base.step).parameters.items():
        positional = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if positional and parameter.default is parameter.empty:
            raise TypeError(
                f"base must step without arguments (PVOptimizer evaluates the closure itself, "
                f"once), but {kind}.step needs {name!r}"
            )


def check_quantized_group(
    base: Optimizer, group: Mapping[str, Any], settings: GroupSettings
) -> None:
    """Refuse a group whose quantized weights could not move as they should.

    Args:
        base: the optimizer.
        group: one of its groups, or one that is to be added.
        settings: the group's options.

    Raises:
        TypeError: without a learning rate.
        ValueError: for averages that have no latent weight to live in, and for differentiable
            steps.
    """
    kind = type(base).__name__
    group = {**base.defaults, **group}
    lr = group.get("lr")
    number = isinstance(lr, int | float) or (isinstance(lr, Tensor) and lr.numel() == 1)
    if not number or isinstance(lr, bool):
        raise TypeError(
            f"groups of quantized weights must have a numeric lr, from which the step of the "
            f"values follows, got {lr!r} with {kind}"
        )
    if group.get("differentiable"):
        raise ValueError("groups of quantized weights must not be differentiable: codes are not")
    if has_modes(base) and not (settings.keeps_latent or settings.freeze_codes):
        raise ValueError(
            f"{kind} averages weights (it has train() and eval()), which needs a latent weight: "
            f"latent_decay must be below 1, got {settings.latent_decay}"
        )


def check_moment() -> None:
    """Refuse to step where tensors cannot be changed for good.

    Raises:
        RuntimeError: in inference mode and while a CUDA graph is captured.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("PVOptimizer cannot step in torch.inference_mode()")
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a step of PVOptimizer cannot be captured in a CUDA graph")


def check_parameter(name: str, parameter: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a parameter that cannot be the weight of a representation.

    Args:
        name: of the weight.
        parameter: the model's present one.
        shape: of the weight that codes and values stand for.

    Raises:
        TypeError: for one that can never be changed.
        WeightsChangedError: for another shape.
    """
    if parameter.is_inference():
        raise TypeError(f"{name!r} was made in torch.inference_mode() and cannot be changed")
    if tuple(parameter.shape) != shape:
        raise WeightsChangedError(
            f"{name!r} has shape {list(parameter.shape)} now, its codes are of {list(shape)}: "
            "quantize it again and make a new optimizer"
        )


def has_modes(base: Optimizer) -> bool:
    """Tell whether an optimizer has train() and eval(), as schedule-free ones do."""
    return all(callable(getattr(base, name, None)) for name in ("train", "eval"))


def share_hooks(base: Optimizer, optimizer: Optimizer) -> None:
    """Let step hooks of the base be those of the optimizer: they see final weights."""
    for name in _HOOKS:
        setattr(optimizer, name, getattr(base, name))


@contextmanager
def hooks_silent(base: Optimizer) -> Iterator[None]:
    """Let no step hook of the base run within: they run around the whole step."""
    before = {name: getattr(base, name) for name in _HOOKS}
    try:
        for name in _HOOKS:
            setattr(base, name, OrderedDict())
        yield
    finally:
        for name, hooks in before.items():
            setattr(base, name, hooks)
