"""All settings of a tuning run: defaults, help texts and limits in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from pvopt import recipes
from pvopt.llm import native_autocast_dtype
from pvopt.parametrizations.options import SearchOptions
from pvopt.rules.rounding import ROUNDINGS
from pvopt.rules.subspace import SUBSPACES

from .bases import BASES

__all__ = ["DTYPES", "TuneSettings", "autocast_dtype", "computing_dtype", "setting"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def setting(default: Any, help: str, choices: Iterable[str] | None = None) -> Any:
    """Return a field of settings whose help text the command line shows.

    Args:
        default: value of the field; ``...`` for none.
        help: what the setting does, in a line.
        choices: all values that are allowed, if these are few.
    """
    shown = {"help": help, "choices": None if choices is None else tuple(choices)}
    return field(metadata=shown) if default is ... else field(default=default, metadata=shown)


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a run tunes; frozen, primitives only, checked on construction.

    What each setting does is the ``help`` in its field's metadata, which
    ``python -m pvopt tune --help`` prints.

    Raises:
        ValueError: for a setting out of range, or one that the recipe would leave unused.

    Example:
        >>> from pvopt.tuning import TuneSettings
        >>> TuneSettings(steps=0)
        Traceback (most recent call last):
        ...
        ValueError: steps must be at least 1, got 0
    """

    recipe: str = setting(
        "subspace_pv_ste", "which method, a function of pvopt.recipes", sorted(recipes.__all__)
    )
    steps: int = setting(48, "optimizer steps in all")
    batch: int = setting(4, "sequences per step")
    micro_batch: int | None = setting(
        None, "sequences per forward and backward pass, a divisor of the batch; default: all"
    )
    length: int = setting(512, "tokens per sequence")
    loss: str = setting(
        "kl", "distillation from the full-precision model, or next tokens", ("kl", "ce")
    )
    temperature: float = setting(1.0, "softens (above 1) the distributions of kl")
    base: str = setting("adafactor", "torch optimizer that is lifted", BASES)
    code_lr: float = setting(
        4e-2, "learning rate of the latent weights, which makes the codes move"
    )
    relative_code_lr: bool = setting(
        True, "whether --code-lr is in units of each weight's root mean square"
    )
    values_lr: float = setting(
        2e-3, "learning rate of codebooks and scales, relative to their root mean square"
    )
    lr: float = setting(
        3e-3,
        "learning rate of all other parameters, for adafactor in units of each one's root mean "
        "square; 0 freezes them",
    )
    weight_decay: float = setting(0.0, "of the base optimizer, on everything")
    subspace: str | None = setting(
        None, "rule for the groups that may move in a step, a form below; default: the recipe's own"
    )
    rounding: str | None = setting(
        None, "rule that takes one of the near codes, a form below; default: the recipe's own"
    )
    metric: str = setting(
        "euclidean",
        "in which distance codes are near: second-moment weighs by the base optimizer's squared "
        "gradients",
        ("euclidean", "second-moment"),
    )
    trust_ratio: float = setting(
        0.0, "bound on the relative change of a weight by a V step; 0: no bound"
    )
    latent_decay: float | None = setting(
        None,
        "share of the rounding error that latent weights forget in a step, 0 to 1; default: the "
        "recipe's own",
    )
    beam: int | None = setting(
        None,
        "combinations that the search of several codes keeps; default: the format's usual number. "
        "Take 1 for recipes that search all groups in every step",
    )
    window: int | None = setting(
        None, "weights of a trellis's tile that may change in a step; default: all"
    )
    lr_schedule: str = setting(
        "linear", "of all learning rates, falling to 0 or not", ("constant", "linear", "cosine")
    )
    warmup: int = setting(0, "steps over which the learning rates rise linearly")
    seed: int = setting(0, "of batches and rounding")
    checkpoint_every: int = setting(0, "steps between checkpoints; 0: by minutes alone")
    checkpoint_minutes: float = setting(
        10.0, "minutes between checkpoints, whatever the steps; 0: by steps and at the end alone"
    )
    eval_every: int = setting(
        0, "steps between evaluations; 0: only before the first step and after the last"
    )
    eval_windows: int = setting(16, "windows of the held-out text to evaluate on")
    eval_length: int | None = setting(None, "tokens per window of evaluation; default: --length")
    device: str = setting("cpu", "of the computation: cpu, cuda, cuda:1 ...")
    dtype: str = setting(
        "auto", "of the computation; auto: bfloat16 where the hardware multiplies it", DTYPES
    )

    def __post_init__(self) -> None:
        for known in fields(self):
            value, allowed = getattr(self, known.name), known.metadata["choices"]
            if allowed is not None and value not in allowed:
                shown = ", ".join(allowed)
                raise ValueError(f"{known.name} must be one of {shown}, got {value!r}")
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("micro_batch", 1),
            ("length", 2),
            ("eval_windows", 1),
            ("eval_length", 2),
            ("beam", 1),
            ("window", 1),
            ("warmup", 0),
            ("checkpoint_every", 0),
            ("eval_every", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        SearchOptions(beam_size=self.beam, window=self.window)
        for name in ("temperature", "code_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and positive, got {getattr(self, name)}")
        for name in ("values_lr", "lr", "weight_decay", "trust_ratio", "checkpoint_minutes"):
            if not 0 <= getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        for name, registry in (("subspace", SUBSPACES), ("rounding", ROUNDINGS)):
            text = getattr(self, name)
            if text is not None:
                registry.parse(text)
                if self.recipe == "continuous_only":
                    raise ValueError(f"{name} does not fit continuous_only, which moves no codes")
        base = BASES[self.base]
        if self.metric == "second-moment" and not base.keeps_squares:
            raise ValueError(f"metric must be euclidean with {self.base}: it keeps no squares")
        if base.relative and not self.relative_code_lr:
            raise ValueError(f"code_lr must be relative with {self.base}, whose steps always are")
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

    def checkpoint_is_due(self, step: int, seconds: float) -> bool:
        """Tell whether a checkpoint is to be written after a step.

        Args:
            step: number of steps taken.
            seconds: since the last checkpoint, or since the run began.

        Example:
            >>> from pvopt.tuning import TuneSettings
            >>> settings = TuneSettings(checkpoint_every=50, checkpoint_minutes=10)
            >>> [settings.checkpoint_is_due(7, 599.0), settings.checkpoint_is_due(7, 600.0)]
            [False, True]
        """
        by_steps = self.checkpoint_every > 0 and step % self.checkpoint_every == 0
        return by_steps or 0 < 60 * self.checkpoint_minutes <= seconds

    def lr_factor(self, step: int) -> float:
        """Return what all learning rates are multiplied with in a step, from 0.

        Example:
            >>> from pvopt.tuning import TuneSettings
            >>> settings = TuneSettings(steps=6, warmup=2, lr_schedule="linear")
            >>> [settings.lr_factor(step) for step in range(6)]
            [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.lr_schedule == "linear":
            return 1 - done
        return (1 + math.cos(math.pi * done)) / 2 if self.lr_schedule == "cosine" else 1.0


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
        >>> from pvopt.tuning import computing_dtype
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
        >>> from pvopt.tuning import autocast_dtype
        >>> autocast_dtype("bfloat16"), autocast_dtype("float32")
        (torch.bfloat16, None)
    """
    known = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {dtype!r}")
    return known[dtype]
