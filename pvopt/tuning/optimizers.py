"""The optimizer of a tuning run: parameter groups, base optimizer, recipe."""

from __future__ import annotations

from typing import Any

from pvopt import recipes
from pvopt.optimizer import PVOptimizer
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import SearchOptions
from pvopt.rules.metric_sources import SecondMoment
from pvopt.rules.rounding import ROUNDINGS
from pvopt.rules.subspace import SUBSPACES
from pvopt.weights import QuantizedWeights

from .bases import BASES
from .settings import TuneSettings

__all__ = ["build_optimizer", "check_fits"]

# Codes answer to the present gradient; the latent weights themselves average over time.
_CODE_BETAS = (0.0, 0.95)
_OTHER_BETAS = (0.9, 0.95)


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
        >>> import torch
        >>> from pvopt import UniformGrid, quantize_
        >>> from pvopt.tuning import TuneSettings, build_optimizer
        >>> model = torch.nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> optimizer = build_optimizer(weights, TuneSettings(lr=1e-4))
        >>> [group["lr"] for group in optimizer.param_groups][1:]
        [0.0001]
    """
    base = BASES[settings.base]
    groups: list[dict[str, Any]] = []
    for name in weights:
        weight = weights.parameter(name)
        # A weight of zeros has no scale of its own.
        scale = float(weight.detach().float().square().mean().sqrt()) or 1.0
        scaled = settings.relative_code_lr and not base.relative
        lr = settings.code_lr * (scale if scaled else 1.0)
        group = {"params": [weight], "lr": lr, "values_lr_ratio": settings.values_lr / lr}
        groups.append(group | base.group_settings(_CODE_BETAS))
    others = weights.other_parameters()
    if settings.lr == 0:
        for parameter in others:
            parameter.requires_grad_(False)
    elif others:
        groups.append({"params": others, "lr": settings.lr} | base.group_settings(_OTHER_BETAS))
    options: dict[str, Any] = {
        "seed": settings.seed,
        "trust_ratio": settings.trust_ratio or None,
        "search": SearchOptions(beam_size=settings.beam, window=settings.window),
    }
    if settings.latent_decay is not None:
        options["latent_decay"] = settings.latent_decay
    if settings.subspace is not None:
        options["subspace"] = SUBSPACES.parse(settings.subspace)
    if settings.rounding is not None:
        options["rounding"] = ROUNDINGS.parse(settings.rounding)
    if settings.metric == "second-moment":
        options["metric"] = SecondMoment()
    recipe = getattr(recipes, settings.recipe)
    lifted = base.make(groups, weight_decay=settings.weight_decay)
    try:
        return recipe(lifted, weights, **options)
    except TypeError as error:  # a rounding or a metric does not fit a representation
        raise ValueError(str(error)) from error


def check_fits(settings: TuneSettings, parametrization: Parametrization) -> None:
    """Refuse, before any work, settings that a parametrization cannot work with.

    Args:
        settings: the run's.
        parametrization: of quantized weights.

    Raises:
        ValueError: if there is no beam or window to set, or the rounding does not fit.

    Example:
        >>> from pvopt import UniformGrid
        >>> from pvopt.tuning import TuneSettings
        >>> from pvopt.tuning.optimizers import check_fits
        >>> check_fits(TuneSettings(beam=3), UniformGrid(bits=2))
        Traceback (most recent call last):
        ...
        ValueError: beam does not fit UniformGrid, whose search is exact
    """
    name = type(parametrization).__name__
    if settings.beam is not None and parametrization.usual_beam == 1:
        raise ValueError(f"beam does not fit {name}, whose search is exact")
    if settings.window is not None and not parametrization.has_windows:
        raise ValueError(f"window does not fit {name}, whose groups are not sequences")
    if settings.rounding is not None:
        try:
            ROUNDINGS.parse(settings.rounding).check(parametrization)
        except TypeError as error:
            raise ValueError(str(error)) from error
