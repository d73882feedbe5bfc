"""A small language model with quantized layers, for files of other programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import pvopt
from pvopt.formats.exl3.canonical import canonical_space, canonical_trellis
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


def draw(scheme: pvopt.Scheme, shape: tuple[int, ...], seed: int = 0) -> pvopt.Representation:
    """Draw codes and values: a search of 2^16 states takes too long for a test."""
    draws = torch.Generator().manual_seed(seed)
    codes = {
        name: torch.randint(s.num_codes, s.shape, generator=draws).to(s.dtype)
        for name, s in scheme.streams(shape).items()
    }
    values = {
        name: (torch.randn(size, generator=draws) / 16).half().float()
        for name, size in scheme.value_shapes(shape).items()
    }
    values["scales"].fill_(1.0)
    return pvopt.Representation(scheme.parametrization, codes, values, shape, scheme.space)


def drawn(kinds: Any, model: Any = None) -> tuple[Any, pvopt.QuantizedWeights]:
    """Return a small model whose layers that a pattern names are drawn."""
    model = model or load_model("tiny-llama").model
    reps = {}
    for number, (name, module) in enumerate(model.named_modules()):
        kind = next((k for part, k in kinds.items() if part in name), None)
        if isinstance(module, nn.Linear) and kind is not None:
            scheme = pvopt.Scheme(canonical_trellis(*kind), canonical_space())
            reps[f"{name}.weight"] = draw(scheme, tuple(module.weight.shape), number)
    weights = pvopt.QuantizedWeights(model, reps)
    weights.write_()
    return model, weights
