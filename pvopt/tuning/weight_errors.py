"""How far quantized weights are from the dense ones that they stand for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pvopt.weights import QuantizedWeights

__all__ = ["relative_error", "weight_errors"]


def relative_error(weight: Tensor, original: Tensor) -> float:
    r"""Return how far a weight is from its original, relative to the original's size.

    .. math:: \frac{\|W_q - W\|}{\|W\|}

    Args:
        weight: ``[*shape]``.
        original: ``[*shape]``.

    Example:
        >>> import torch
        >>> from pvopt.tuning import relative_error
        >>> relative_error(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0]))
        0.8
    """
    norm = torch.linalg.vector_norm
    error = norm(weight.float() - original.float(), dtype=torch.float64)
    return float(error / norm(original, dtype=torch.float64)) if error > 0 else 0.0


@torch.no_grad()
def weight_errors(weights: QuantizedWeights, original: nn.Module) -> dict[str, float]:
    """Return the relative error of every weight of which a model has the original.

    Args:
        weights: the quantized weights.
        original: a model with parameters of the same names; those of other shapes are left out.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.tuning.weight_errors import weight_errors
        >>> model, original = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     for module in (model, original):
        ...         _ = module.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> weight_errors(pvopt.quantize_(model, pvopt.SharedValues(num_values=4)), original)
        {'weight': 0.0}
    """
    dense: Mapping[str, Tensor] = dict(original.named_parameters(remove_duplicate=False))
    pairs = {name: (weights.parameter(name), dense.get(name)) for name in weights}
    return {
        name: relative_error(weight, known)
        for name, (weight, known) in pairs.items()
        if known is not None and known.shape == weight.shape
    }
