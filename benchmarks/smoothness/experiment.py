"""The two measurements: constants of the dense model, code learning rates of the quantized one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pvopt
from pvopt import formats
from pvopt.llm import LanguageModel, TokenBatches, load_text
from pvopt.smoothness import (
    SmoothnessEstimate,
    SmoothnessSettings,
    estimate_smoothness,
    suggest_code_lr,
)

__all__ = ["HAND_FOUND", "Settings", "code_rates", "constants", "sequences"]

Rows = list[dict[str, Any]]

# Best code learning rate in the runs of benchmarks.llm_tune: Adafactor, 1 % of the groups.
HAND_FOUND = 4e-2

BASES: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": partial(torch.optim.Adam, betas=(0.0, 0.95)),
    "adafactor": torch.optim.Adafactor,
}

PLAN = (
    ("adafactor", pvopt.Greedy(0.01)),
    ("adafactor", pvopt.Uniform(0.01)),
    ("adafactor", pvopt.AllGroups()),
    ("adam", pvopt.Uniform(0.01)),  # its updates are alike: there is no largest one
    ("sgd", pvopt.Greedy(0.01)),
)


@dataclass(frozen=True)
class Settings:
    """Everything the numbers depend on.

    Args:
        model: source for :func:`pvopt.llm.load_model`.
        text: source for :func:`pvopt.llm.load_text`.
        batch, length: sequences, and tokens per sequence.
        path_steps, draws, iterations, tolerance: see :class:`SmoothnessSettings`.
        num_codebooks, bits, group: additive codebooks of the code learning rates.
        seed: of the text's order, the subsets and the k-means start.
    """

    model: str = "smollm2"
    text: str = "pydoc"
    batch: int = 2
    length: int = 64
    path_steps: int = 3
    draws: int = 1
    iterations: int = 20
    tolerance: float = 3e-3
    num_codebooks: int = 2
    bits: int = 8
    group: int = 8
    seed: int = 0

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes for a first look: a tiny random model, a coarser power iteration."""
        return cls(model="tiny-llama", length=32, path_steps=2, bits=4, tolerance=1e-2)

    def estimate(self) -> SmoothnessSettings:
        """Return the library's settings, with its fractions of 5 % to 100 %."""
        own = asdict(self)
        names = ("path_steps", "draws", "iterations", "tolerance")
        return SmoothnessSettings(**{name: own[name] for name in names})


def sequences(settings: Settings, language_model: LanguageModel) -> Tensor:
    """Return token ids, ``[batch, length]``."""
    tokens = language_model.encode(load_text(settings.text))
    return TokenBatches(tokens, settings.batch, settings.length, settings.seed)[0]


def constants(
    settings: Settings, model: nn.Module, ids: Tensor, progress: Callable[[int, int], None]
) -> Rows:
    """Estimate the constants of the next-token loss; one row for every fraction."""
    found = estimate_smoothness(
        model,
        partial(_next_token_loss, ids=ids),
        _linear_weights(model),
        settings.estimate(),
        generator=torch.Generator().manual_seed(settings.seed),
        progress=progress,
    )
    by_place = {(e.estimator, e.fraction): e for e in found}
    fractions = sorted({e.fraction for e in found})
    return [_row(by_place, fraction, fractions[-1]) for fraction in fractions]


def code_rates(settings: Settings, model: nn.Module, ids: Tensor, start: Path | None) -> Rows:
    """Suggest learning rates for distilling the model into a quantized one.

    Args:
        settings: the benchmark's.
        model: the teacher; quantized in place unless there is a start.
        ids: token ids, ``[batch, length]``.
        start: a checkpoint of the quantized model, as ``python -m pvopt quantize`` writes.
    """
    with torch.no_grad():
        teacher = _log_probabilities(model, ids)
    if start is None:
        spec = pvopt.AdditiveCodebooks(
            num_codebooks=settings.num_codebooks, bits=settings.bits, in_group=settings.group
        )
        weights = pvopt.quantize_(model, spec, seed=settings.seed)
    else:
        loaded = formats.load(start)
        model, weights = loaded.model, loaded.weights
    rows = []
    for base, subspace in PLAN:
        found = suggest_code_lr(
            model,
            partial(_divergence, teacher=teacher, ids=ids),
            weights,
            base=BASES[base],
            subspace=subspace,
            generator=torch.Generator().manual_seed(settings.seed),
        )
        rule = type(subspace).__name__
        rows.append(
            {"experiment": "code learning rate", "base": base, "subspace": rule, **asdict(found)}
        )
    return rows


def _row(
    found: dict[tuple[str, float], SmoothnessEstimate], fraction: float, largest: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"experiment": "constants", "fraction": fraction}
    for estimator in ("quotient", "power"):
        own = found[estimator, fraction]
        row[estimator] = own.constant
        row[f"{estimator}_over_full"] = own.constant / found[estimator, largest].constant
        row[f"{estimator}_by_draw_and_step"] = own.constants
    return row


def _linear_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are quantized by default: all linear layers but the head."""
    return [
        model.get_parameter(f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    ]


def _log_probabilities(model: Any, ids: Tensor) -> Tensor:
    return F.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), -1)


def _next_token_loss(model: nn.Module, *, ids: Tensor) -> Tensor:
    # The chunked losses of pvopt.llm have no second derivative.
    found = _log_probabilities(model, ids)[:, :-1]
    return F.nll_loss(found.flatten(0, 1), ids[:, 1:].flatten())


def _divergence(model: nn.Module, *, teacher: Tensor, ids: Tensor) -> Tensor:
    student = _log_probabilities(model, ids).flatten(0, 1)
    return F.kl_div(student, teacher.flatten(0, 1), reduction="batchmean", log_target=True)
