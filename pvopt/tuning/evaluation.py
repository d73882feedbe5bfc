"""What a run measures between steps, always on the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pvopt.llm import PerplexityResult, compare, output_head, perplexity

from .settings import TuneSettings, autocast_dtype

__all__ = ["Evaluation"]

Progress = Callable[[int, int], None]


class Evaluation:
    """Measures models on held-out tokens, by the settings of a run.

    Args:
        tokens: ``[tokens]`` int64.
        settings: the run's, with the dtype that ``auto`` stands for.
    """

    def __init__(self, tokens: Tensor, settings: TuneSettings) -> None:
        self.tokens = tokens
        self._measure: dict[str, Any] = {
            "context_length": settings.context_length,
            "max_windows": settings.eval_windows,
            "autocast_dtype": autocast_dtype(settings.dtype),
        }

    def perplexity(self, model: nn.Module, progress: Progress) -> PerplexityResult:
        """Measure the perplexity of a model."""
        return perplexity(model, self.tokens, progress=progress, **self._measure)

    def comparison(
        self, model: nn.Module, teacher: nn.Module, progress: Progress
    ) -> PerplexityResult:
        """Measure it and compare the model with its teacher, unless they predict other tokens.

        Twice the work of a perplexity.
        """
        if len(output_head(model).weight) != len(output_head(teacher).weight):
            return self.perplexity(model, progress)
        return compare(model, teacher, self.tokens, progress=progress, **self._measure)
