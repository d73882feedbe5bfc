"""A small language model with quantized layers, for files of other programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import pvopt
from pvopt.llm import load_model

IDS = torch.arange(40)[None]


def tiny(spec: Any, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, pvopt.QuantizedWeights]:
    """Return a small Llama with quantized layers, everything in one dtype."""
    model = load_model("tiny-llama").model.to(dtype)
    model.config.dtype = dtype
    if isinstance(spec, str):
        spec = pvopt.parse_scheme(spec)
    weights = pvopt.quantize_(model, spec, options=pvopt.FitOptions(iterations=1))
    return model, in_dtype(weights, dtype)


def in_dtype(weights: pvopt.QuantizedWeights, dtype: torch.dtype) -> pvopt.QuantizedWeights:
    """Return the weights with values of a dtype, written."""
    reps = {name: rep.to(dtype=dtype) for name, rep in weights.items()}
    weights = pvopt.QuantizedWeights(weights.model, reps)
    weights.write_()
    return weights


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits
