"""A short PV-tuned point from a start, with the settings of the benchmark ``llm_tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.llm_tune import experiment as llm_tune

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
        evaluate_at=(settings.tuned_steps,),
        context=settings.context,
        windows=settings.windows,
        precision=settings.precision,
        seed=settings.seed,
        **small,
    )


def prepare_tuning(settings: Settings, folder: Path) -> None:
    """Keep the teacher's hidden states for every batch."""
    llm_tune.keep_teacher(_settings(settings), folder)


def tune(settings: Settings, name: str, folder: Path) -> dict[str, Any]:
    """Tune the start that is kept under a row's name; return what the row gains."""
    found = llm_tune.tune(_settings(settings), "subspace_pv_ste", folder, start=name)
    return {
        "tuned_ppl": found[f"ppl_{settings.tuned_steps}"],
        "tuned_step_s": found["forward_backward_s"] + found["step_s"],
        "tuned_peak_bytes": found["peak_bytes"],
    }
