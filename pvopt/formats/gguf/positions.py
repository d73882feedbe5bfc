"""How positions rotate queries and keys: as usual, or more slowly, as in Llama 3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["FACTORS", "frequency_factors", "parameters_of", "unsupported_positions"]

#: The tensor of a file by which frequencies are divided.
FACTORS = "rope_freqs.weight"
# What all models of Llama 3.1 to 3.3 have; a file has the factors that follow, not these numbers.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def unsupported_positions(parameters: Mapping[str, Any]) -> str | None:
    """Return why a file cannot say how a model rotates, or None.

    Args:
        parameters: ``rope_parameters`` of a configuration.
    """
    kind = parameters.get("rope_type", "default")
    if kind not in ("default", "llama3"):
        return f"positions must be rotated by 'default' or 'llama3', not by {kind!r}"
    others = {name: parameters.get(name) for name in _LLAMA3}
    if kind == "llama3" and others != _LLAMA3:
        return f"positions must be rotated as in Llama 3 ({_LLAMA3}), got {others}"
    return None


def frequency_factors(parameters: Mapping[str, Any], size: int) -> Tensor | None:
    r"""Return what a file divides the frequencies of a head by, or None for 1.

    Wavelengths beyond the original context :math:`c` are multiplied by the factor :math:`f`, those
    below :math:`c / 4` stay, and between them frequencies are interpolated:

    .. math:: \frac{1}{d} = \frac{1 - t}{f} + t, \qquad t = \frac{c / \lambda - 1}{4 - 1}

    Args:
        parameters: ``rope_parameters`` of a configuration.
        size: of a head.

    Returns:
        ``[size / 2]`` float32.
    """
    if parameters.get("rope_type", "default") == "default":
        return None
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    waves = 2 * math.pi * float(parameters["rope_theta"]) ** exponents
    low, high, context = _LLAMA3.values()
    share = ((context / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / float(parameters["factor"]) + share)).float()


def parameters_of(theta: float, size: int, factors: Tensor | None) -> dict[str, Any]:
    """Return ``rope_parameters`` of a file, the inverse.

    Args:
        theta: the base of the frequencies.
        size: of a head.
        factors: of the file, if it has any.

    Raises:
        ValueError: if the factors are none of Llama 3's.
    """
    if factors is None:
        return {"rope_type": "default", "rope_theta": theta}
    found = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": float(factors.max()),
        **_LLAMA3,
    }
    expected = frequency_factors(found, size)
    assert expected is not None
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-4):
        raise ValueError(f"{FACTORS} has other factors than models of Llama 3 have")
    return found
