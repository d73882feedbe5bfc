"""What the benchmarks on language models measure alike: quality, and the peak of the memory."""

from __future__ import annotations

import resource
from typing import Any, Protocol

import torch
from torch import Tensor

from pvopt.llm import compare, load_model, native_autocast_dtype, perplexity

__all__ = ["EvaluationSettings", "peak_bytes", "text_perplexity", "text_quality"]


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
    return perplexity(model, tokens, **_windows(settings)).perplexity


def text_quality(
    settings: EvaluationSettings, model: Any, source: str, tokens: Tensor
) -> dict[str, float]:
    """Return perplexity, divergence from the original and agreement with it on a text.

    Args:
        settings: of the benchmark.
        model: a causal language model.
        source: of the original, for :func:`pvopt.llm.load_model`.
        tokens: ``[n]`` token ids.
    """
    near = compare(model, load_model(source).model, tokens, **_windows(settings))
    return {
        "ppl": near.perplexity,
        "kl": near.divergence,
        "top1": near.agreement,
    }


def _windows(settings: EvaluationSettings) -> dict[str, Any]:
    if settings.precision == "auto":
        dtype = native_autocast_dtype()
    else:
        dtype = {"float32": None, "bfloat16": torch.bfloat16}[settings.precision]
    return {
        "context_length": settings.context,
        "max_windows": settings.windows,
        "autocast_dtype": dtype,
    }


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
