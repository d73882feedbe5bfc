"""The check that keeps NaN and infinity out of weights, codes and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["NonFiniteGradientError", "check_finite"]


class NonFiniteGradientError(FloatingPointError):
    """A gradient holds NaN or infinity; nothing was changed."""


def check_finite(groups: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> None:
    """Raise if any gradient of some parameter groups holds NaN or infinity.

    Args:
        groups: parameter groups of an optimizer.
        names: names of parameters by ``id``, for the message; ``param_names`` of a group win.

    Raises:
        NonFiniteGradientError: naming the first such parameter.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> p.grad = torch.tensor([1.0, float("nan")])
        >>> check_finite([{"params": [p]}], {id(p): "weight"})
        Traceback (most recent call last):
        ...
        pvopt.engine.finite_check.NonFiniteGradientError: the gradient of 'weight' (parameter 0 ...
    """
    for i, group in enumerate(groups):
        for j, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            grad = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
            # A finite sum proves finite entries and reads at memory speed; the exact look is 40
            # times slower and only needed if the sum itself overflowed.
            if bool(grad.sum().isfinite()) or bool(grad.isfinite().all()):
                continue
            known = group.get("param_names", {j: names.get(id(p), "(not quantized)")})[j]
            raise NonFiniteGradientError(
                f"the gradient of {known!r} (parameter {j} of group {i}) holds NaN or infinity; "
                "weights, codes and state are unchanged"
            )
