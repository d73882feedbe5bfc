"""llama.cpp itself, for files that it is to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


class LlamaCpp:
    """A model that llama.cpp has loaded, on one thread."""

    def __init__(self, file: Path, *, length: int = 128) -> None:
        peer = pytest.importorskip("xllamacpp", reason="the package xllamacpp is missing")
        settings = peer.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx = length
        settings.n_parallel = 1
        settings.n_gpu_layers = 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.warmup = settings.fit_params = False
        settings.cache_type_k = settings.cache_type_v = peer.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = peer.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.verbosity = -1
        self._server = peer.Server(settings)

    def log_probs(self, prompt: list[int] | str, vocabulary: int) -> Tensor:
        """Return the logarithms of the probabilities of all next tokens."""
        found = self._complete(prompt, n_probs=vocabulary)
        content = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        result = torch.full((vocabulary,), torch.nan)
        for entry in content:
            result[entry["id"]] = entry["logprob"]
        return result

    def _complete(self, prompt: Any, **settings: Any) -> Any:
        # A byte alone is no text, and not answered: let it choose a letter, whatever it computes.
        chosen = {"n_predict": 1, "temperature": 0, "logit_bias": [[97, 1e4]]}
        found = self._server.handle_completions({"prompt": prompt, **chosen, **settings})
        assert "error" not in found, found
        return found
