"""A short PV-tuned point from a start, with the settings of the benchmark ``llm_tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation import text_quality
from benchmarks.llm_tune import experiment as llm_tune
from pvopt import formats

from .experiment import Settings

__all__ = ["prepare_tuning", "tune"]


def _settings(settings: Settings) -> llm_tune.Settings:
    small: dict[str, Any] = (
        {} if settings.model == "smollm2" else {"batch": 4, "length": 64, "code_lr": 0.3}
    )
    return llm_tune.Settings(
        model=settings.model,
        train_text=settings.calibration_text,
        test_text=settings.test_text,
        steps=settings.tuned_steps,
        evaluate_at=(),
        context=settings.context,
        windows=settings.windows,
        precision=settings.precision,
        seed=settings.seed,
        **small,
    )


def prepare_tuning(settings: Settings, folder: Path) -> dict[str, Any]:
    """Keep the teacher's hidden states for every batch."""
    llm_tune.keep_teacher(_settings(settings), folder)
    return {}


def tune(settings: Settings, name: str, recipe: str, folder: Path) -> dict[str, Any]:
    """Tune the start that is kept under a row's name; return a row of its own."""
    own = _settings(settings)
    tuned = folder / f"{name}-{recipe}"
    found = llm_tune.tune(own, recipe, folder, start=name, keep=tuned)
    loaded = formats.load(tuned)
    test = torch.load(folder / llm_tune.TEACHER, mmap=True, weights_only=True)["test"]
    step_s = found["forward_backward_s"] + found["step_s"]
    return {
        "format": name,
        "method": recipe,
        "steps": settings.tuned_steps,
        "bits_per_weight": loaded.weights.bits_per_weight(value_bits=16),
        **text_quality(own, loaded.model, own.model, test),
        "minutes": step_s * settings.tuned_steps / 60,
        "peak_bytes": found["peak_bytes"],
        "threads": torch.get_num_threads(),
    }
