"""The optimizer of a tuning run: parameter groups, base optimizer, recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from pvopt import recipes
from pvopt.metrics.sources import SecondMoment
from pvopt.optimizer import PVOptimizer
from pvopt.parametrizations import AdditiveCodebooks, Parametrization
from pvopt.weights import QuantizedWeights
from pvopt.rules.subspace import Gain, Greedy, Proportional, Uniform

from .settings import TuneSettings

__all__ = ["build_optimizer", "with_beam_size"]

# Codes answer to the present gradient; the latent weights themselves average over time.
_CODE_BETAS = (0.0, 0.95)
_OTHER_BETAS = (0.9, 0.95)

_SUBSPACES = {"greedy": Greedy, "gain": Gain, "uniform": Uniform, "proportional": Proportional}


def build_optimizer(weights: QuantizedWeights, settings: TuneSettings) -> PVOptimizer:
    r"""Make the optimizer of a run.

    Each quantized weight is a group of its own with

    .. math:: \eta_w = \eta_\mathrm{code}\, \mathrm{rms}(w)

    (relative learning rate; Adafactor multiplies by the size itself) and the ratio that gives all
    values the same learning rate. All other trainable parameters are one last group; with
    ``lr = 0`` they are frozen instead.

    Args:
        weights: the quantized weights, bound to their model.
        settings: the run's.

    Returns:
        The recipe's optimizer over all trainable parameters.

    Raises:
        ValueError: if the recipe cannot work with a setting or a representation.

    Example:
        >>> from pvopt import UniformGrid, quantize_
        >>> model = torch.nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> optimizer = build_optimizer(weights, TuneSettings(lr=1e-4))
        >>> [group["lr"] for group in optimizer.param_groups][1:]
        [0.0001]
    """
    adam = settings.base in ("adam", "adamw")
    if settings.base == "adafactor" and not settings.relative_code_lr:
        raise ValueError("code_lr must be relative with adafactor, whose steps always are")
    groups: list[dict[str, Any]] = []
    for name in weights:
        weight = weights.parameter(name)
        # A weight of zeros has no scale of its own.
        scale = float(weight.detach().float().square().mean().sqrt()) or 1.0
        scaled = settings.relative_code_lr and settings.base != "adafactor"
        lr = settings.code_lr * (scale if scaled else 1.0)
        group = {"params": [weight], "lr": lr, "values_lr_ratio": settings.values_lr / lr}
        groups.append(group | ({"betas": _CODE_BETAS} if adam else {}))
    others = weights.other_parameters()
    if settings.lr == 0:
        for parameter in others:
            parameter.requires_grad_(False)
    elif others:
        group = {"params": others, "lr": settings.lr}
        groups.append(group | ({"betas": _OTHER_BETAS} if adam else {}))
    options: dict[str, Any] = {"seed": settings.seed, "trust_ratio": settings.trust_ratio or None}
    if settings.latent_decay is not None:
        options["latent_decay"] = settings.latent_decay
    if settings.subspace is not None:
        options["subspace"] = _SUBSPACES[settings.subspace]()
    if settings.metric == "second-moment":
        options["metric"] = SecondMoment()
    recipe = getattr(recipes, settings.recipe)
    optimizer: PVOptimizer = recipe(_base(groups, settings), weights, **options)
    if settings.fraction is not None:
        for group in optimizer.param_groups:
            group["fraction"] = settings.fraction
    return optimizer


def with_beam_size(parametrization: Parametrization, beam_size: int) -> Parametrization:
    """Return additive codebooks with another beam size of the V step.

    Args:
        parametrization: additive codebooks.
        beam_size: combinations kept between codebooks.

    Raises:
        ValueError: for parametrizations without a beam, or if the size is out of range.

    Example:
        >>> with_beam_size(AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8), 3).beam_size
        3
    """
    if not isinstance(parametrization, AdditiveCodebooks):
        raise ValueError(f"beam fits additive codebooks only, got {parametrization}")
    return replace(parametrization, beam_size=beam_size)


def _base(groups: list[dict[str, Any]], settings: TuneSettings) -> Optimizer:
    decay: dict[str, Any] = {"weight_decay": settings.weight_decay}
    if settings.base == "adamw":
        return torch.optim.AdamW(groups, fused=True, **decay)
    if settings.base == "adam":
        return torch.optim.Adam(groups, fused=True, **decay)
    if settings.base == "sgd":
        return torch.optim.SGD(groups, fused=True, **decay)
    if settings.base == "rmsprop":
        return torch.optim.RMSprop(groups, alpha=_CODE_BETAS[1], **decay)
    return torch.optim.Adafactor(groups, **decay)
