"""The stages of the benchmark; each runs in a process of its own, so that its memory is its own."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evaluation import peak_bytes, text_perplexity, text_quality
from pvopt import formats
from pvopt.calibration import AsymmetricCalibration, EndLoss, FineTuning, calibrate_
from pvopt.llm import LanguageModel, load_model, load_text

from .lineup import ROWS

__all__ = ["Settings", "measure", "measure_teacher"]


@dataclass(frozen=True)
class Settings:
    """Everything the numbers depend on.

    Args:
        model: source for :func:`pvopt.llm.load_model`.
        calibration_text, test_text: sources for :func:`pvopt.llm.load_text`.
        tokens, length: calibration tokens in all, and per sequence.
        context, windows: of the evaluation.
        precision: of the evaluation: "float32", "bfloat16" (autocast) or "auto" (bfloat16 where
            native).
        end_loss: power of :class:`pvopt.calibration.EndLoss`; None: tokens count alike.
        asymmetric: share of :class:`pvopt.calibration.AsymmetricCalibration`; None: plain.
        fine_tune: epochs of block-wise fine-tuning.
        tuned_steps: steps of tuning, by each recipe of a row; 0: none.
        seed: of the starts.
    """

    model: str = "smollm2"
    calibration_text: str = "hub:Salesforce/wikitext:wikitext-2-v1:validation"
    test_text: str = "hub:Salesforce/wikitext:wikitext-2-raw-v1:test"
    tokens: int = 65536
    length: int = 1024
    context: int = 1024
    windows: int = 24
    precision: str = "auto"
    end_loss: float | None = None
    asymmetric: float | None = None
    fine_tune: int = 0
    tuned_steps: int = 0
    seed: int = 0

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes for a first look: a tiny random model on Python's manual."""
        return cls(
            model="tiny-llama",
            calibration_text="pydoc",
            test_text="pydoc",
            tokens=2048,
            length=128,
            context=128,
            windows=4,
        )

    def key(self) -> str:
        """Return what a row depends on (before tuning), as text."""
        kept = {name: value for name, value in asdict(self).items() if name != "tuned_steps"}
        return json.dumps(kept, sort_keys=True)

    def teacher_key(self) -> str:
        """Return what the teacher's perplexity depends on, as text."""
        names = ("model", "test_text", "context", "windows", "precision")
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)


def _texts(settings: Settings, model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Return the calibration tokens ``[sequences, length]`` and the test tokens."""
    test = model.encode(load_text(settings.test_text))[: settings.context * settings.windows]
    tokens = model.encode(load_text(settings.calibration_text))
    count = min(settings.tokens, len(tokens)) // settings.length
    return tokens[: count * settings.length].view(count, settings.length), test


def measure_teacher(settings: Settings) -> dict[str, Any]:
    """Measure the full-precision model."""
    teacher = load_model(settings.model)
    return {"teacher_ppl": text_perplexity(settings, teacher.model, _texts(settings, teacher)[1])}


def measure(settings: Settings, name: str, folder: Path) -> dict[str, Any]:
    """Quantize the model by one row's start and return the row."""
    row = ROWS[name]
    loaded = load_model(settings.model)
    calibration, test = _texts(settings, loaded)
    begin = time.perf_counter()
    result = calibrate_(
        loaded.model,
        calibration,
        row.build(loaded.model),
        row.parsed_start(),
        end_loss=None if settings.end_loss is None else EndLoss(power=settings.end_loss),
        asymmetric=(
            None
            if settings.asymmetric is None
            else AsymmetricCalibration(share=settings.asymmetric)
        ),
        fine_tuning=FineTuning(epochs=settings.fine_tune) if settings.fine_tune else None,
        seed=settings.seed,
    )
    quantize_s = time.perf_counter() - begin
    peak = peak_bytes()
    if row.recipes:  # a tuned point may start from it, now or in a later run
        start = folder / name
        formats.save(start, loaded.model, result.weights, tokenizer=loaded.tokenizer)
    errors = list(result.layer_errors.values())
    return {
        "format": name,
        "method": row.start,
        "steps": 0,
        "bits_per_weight": result.weights.bits_per_weight(value_bits=16),
        **text_quality(settings, loaded.model, settings.model, test),
        "layer_error": statistics.mean(errors),
        "layer_error_max": max(errors),
        "calibration_tokens": calibration.numel(),
        "minutes": quantize_s / 60,
        "peak_bytes": peak,
        "threads": torch.get_num_threads(),
    }
