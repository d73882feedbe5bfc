"""All settings of a tuning run, with the defaults in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pvopt import recipes
from pvopt.llm import native_autocast_dtype

__all__ = [
    "BASES",
    "DTYPES",
    "LOSSES",
    "METRICS",
    "RECIPES",
    "SCHEDULES",
    "SUBSPACES",
    "TuneSettings",
    "autocast_dtype",
    "computing_dtype",
]

RECIPES = tuple(sorted(recipes.__all__))
BASES = ("adafactor", "adam", "adamw", "rmsprop", "sgd")
LOSSES = ("kl", "ce")
SUBSPACES = ("greedy", "gain", "uniform", "proportional")
METRICS = ("euclidean", "second-moment")
SCHEDULES = ("constant", "linear", "cosine")
DTYPES = ("auto", "float32", "bfloat16", "float16")

_WITH_FRACTION = ("subspace_pv", "subspace_pv_ste")


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a run tunes; frozen, primitives only, checked on construction.

    Args:
        recipe: name of a function of :mod:`pvopt.recipes`.
        steps: optimizer steps in all.
        batch: sequences per step.
        micro_batch: sequences per forward and backward pass, a divisor of ``batch``; None: all.
        length: tokens per sequence.
        loss: ``kl`` (distillation from the full-precision model) or ``ce`` (next tokens).
        temperature: softens (> 1) the distributions of ``kl``.
        base: the torch optimizer that is lifted.
        code_lr: learning rate of the latent weights, which makes the codes move.
        relative_code_lr: whether ``code_lr`` is in units of each weight's root mean square.
        values_lr: learning rate of codebooks and scales, relative to their root mean square.
        lr: learning rate of all other parameters, for ``adafactor`` in units of each one's root
            mean square; 0 freezes them.
        weight_decay: of the base optimizer, on everything.
        fraction: share of the groups that may move per step; None: the recipe's own.
        subspace: which groups they are: ``greedy`` (largest change), ``gain`` (largest predicted
            decrease; searches many more groups), ``uniform`` or ``proportional``; None: the
            recipe's own.
        metric: in which distance codes are near: ``euclidean``, or ``second-moment`` of the base
            optimizer's gradients.
        trust_ratio: bound on the relative change of a weight by a V step; 0: no bound.
        latent_decay: share of the rounding error that latent weights forget per step, 0 to 1;
            None: the recipe's own.
        beam: beam size of the search in additive codebooks; None: the representation's own. Take
            1 for recipes that search all groups in every step.
        schedule: of all learning rates: ``constant``, ``linear`` (to 0) or ``cosine`` (to 0).
        warmup: steps over which the learning rates rise linearly.
        seed: of batches and rounding.
        checkpoint_every: steps between checkpoints; 0: only at the end.
        eval_every: steps between evaluations; 0: only before the first step and after the last.
        eval_windows: windows of the held-out text to evaluate on.
        eval_length: tokens per window of evaluation; None: ``length``.
        dtype: of the computation: ``float32``, ``bfloat16`` or ``float16`` (autocast), or ``auto``:
            that of a tuned checkpoint to start from, that of a model in half precision, bfloat16
            where the hardware multiplies it, else float32. A run keeps what that turned out to be.

    Raises:
        ValueError: for a setting out of range.

    Example:
        >>> TuneSettings(steps=0)
        Traceback (most recent call last):
        ...
        ValueError: steps must be at least 1, got 0
    """

    recipe: str = "subspace_pv_ste"
    steps: int = 48
    batch: int = 4
    micro_batch: int | None = None
    length: int = 512
    loss: str = "kl"
    temperature: float = 1.0
    base: str = "adafactor"
    code_lr: float = 4e-2
    relative_code_lr: bool = True
    values_lr: float = 2e-3
    lr: float = 3e-3
    weight_decay: float = 0.0
    fraction: float | None = None
    subspace: str | None = None
    metric: str = "euclidean"
    trust_ratio: float = 0.0
    latent_decay: float | None = None
    beam: int | None = None
    schedule: str = "linear"
    warmup: int = 0
    seed: int = 0
    checkpoint_every: int = 0
    eval_every: int = 0
    eval_windows: int = 16
    eval_length: int | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("recipe", RECIPES),
            ("base", BASES),
            ("loss", LOSSES),
            ("metric", METRICS),
            ("schedule", SCHEDULES),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in allowed:
                shown = ", ".join(allowed)
                raise ValueError(f"{name} must be one of {shown}, got {getattr(self, name)!r}")
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("micro_batch", 1),
            ("length", 2),
            ("eval_windows", 1),
            ("eval_length", 2),
            ("beam", 1),
            ("warmup", 0),
            ("checkpoint_every", 0),
            ("eval_every", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("temperature", "code_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("values_lr", "lr", "weight_decay", "trust_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        if self.fraction is not None and self.recipe not in _WITH_FRACTION:
            raise ValueError(
                f"fraction fits the recipes {' and '.join(_WITH_FRACTION)}, "
                f"got {self.fraction} with {self.recipe}"
            )
        if self.subspace is not None and (
            self.subspace not in SUBSPACES or self.recipe not in _WITH_FRACTION
        ):
            raise ValueError(
                f"subspace must be one of {', '.join(SUBSPACES)}, for the recipes "
                f"{' and '.join(_WITH_FRACTION)}, got {self.subspace!r} with {self.recipe}"
            )
        if self.metric == "second-moment" and self.base == "sgd":
            raise ValueError("metric must be euclidean with sgd, which keeps no second moment")
        if self.latent_decay is not None and not 0 <= self.latent_decay <= 1:
            raise ValueError(f"latent_decay must be in [0, 1], got {self.latent_decay}")
        if self.batch % self.sequences_per_pass:
            raise ValueError(f"micro_batch must divide batch={self.batch}, got {self.micro_batch}")

    @property
    def sequences_per_pass(self) -> int:
        """Sequences per forward and backward pass."""
        return self.micro_batch or self.batch

    @property
    def context_length(self) -> int:
        """Tokens per window of evaluation."""
        return self.eval_length or self.length

    def lr_factor(self, step: int) -> float:
        """Return what all learning rates are multiplied with in a step, from 0.

        Example:
            >>> settings = TuneSettings(steps=6, warmup=2, schedule="linear")
            >>> [settings.lr_factor(step) for step in range(6)]
            [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.schedule == "linear":
            return 1 - done
        return (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1.0


def computing_dtype(dtype: str, model: nn.Module, metadata: Mapping[str, Any] | None = None) -> str:
    """Return the name of the dtype that a setting stands for with a model, on this machine.

    ``auto`` depends on the machine: whoever computes with the result keeps it, so that what is
    compared with it later, on any machine, can be computed alike.

    Args:
        dtype: a name in ``DTYPES``.
        model: what computes.
        metadata: of the checkpoint that the model comes from. The dtype that it was tuned in goes
            before the model's own and the machine's.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(2, 2)
        >>> computing_dtype("auto", model, {"settings": {"dtype": "bfloat16"}})
        'bfloat16'
        >>> computing_dtype("auto", model.half()), computing_dtype("float32", model)
        ('float16', 'float32')
    """
    if dtype != "auto":
        return dtype
    settings = (metadata or {}).get("settings")
    recorded = settings.get("dtype") if isinstance(settings, Mapping) else None
    if recorded in DTYPES and recorded != "auto":
        return recorded
    weight = next(p for p in model.parameters() if p.is_floating_point())
    if weight.dtype in (torch.bfloat16, torch.float16):
        return str(weight.dtype).removeprefix("torch.")
    return "float32" if native_autocast_dtype(weight.device) is None else "bfloat16"


def autocast_dtype(dtype: str) -> torch.dtype | None:
    """Return the autocast dtype of a computation, None for float32.

    Args:
        dtype: a name in ``DTYPES`` other than ``auto``, as :func:`computing_dtype` returns it.

    Raises:
        ValueError: for any other name.

    Example:
        >>> autocast_dtype("bfloat16"), autocast_dtype("float32")
        (torch.bfloat16, None)
    """
    known = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {dtype!r}")
    return known[dtype]
