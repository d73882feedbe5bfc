"""PARQ's optimizer, of the package torchao."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

__all__ = ["parq"]


def parq(base: Optimizer, prox: Callable[[Any], Any]) -> Optimizer:
    """Return PARQ's optimizer, quantizing per channel in every step.

    Args:
        base: over groups, of which those that are to be quantized have ``quant_bits``.
        prox: makes the proximal map of the module ``torchao.prototype.parq.optim``.

    Raises:
        ImportError: without torchao.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optim = importlib.import_module("torchao.prototype.parq.optim")
        quant = importlib.import_module("torchao.prototype.parq.quant")
    return optim.QuantOptimizer(
        base, quant.UnifQuantizer(), prox(optim), quant_period=1, quant_per_channel=True
    )
