"""What the benchmarks on language models measure alike: perplexity, and the peak of the memory."""

from __future__ import annotations

import resource
from typing import Any, Protocol

import torch
from torch import Tensor

from pvopt.llm import native_autocast_dtype, perplexity

__all__ = ["EvaluationSettings", "peak_bytes", "text_perplexity"]


class EvaluationSettings(Protocol):
    """The settings of a benchmark that its evaluation depends on."""

    @property
    def context(self) -> int:
        """Tokens per window."""
        ...

    @property
    def windows(self) -> int:
        """Number of windows at most."""
        ...

    @property
    def precision(self) -> str:
        """One of "float32", "bfloat16" (autocast) and "auto" (bfloat16 where native)."""
        ...


def text_perplexity(settings: EvaluationSettings, model: Any, tokens: Tensor) -> float:
    """Return the perplexity of a model on a text.

    Args:
        settings: of the benchmark.
        model: a causal language model.
        tokens: ``[n]`` token ids.
    """
    if settings.precision == "auto":
        dtype = native_autocast_dtype()
    else:
        dtype = {"float32": None, "bfloat16": torch.bfloat16}[settings.precision]
    return perplexity(
        model,
        tokens,
        context_length=settings.context,
        max_windows=settings.windows,
        autocast_dtype=dtype,
    ).perplexity


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
