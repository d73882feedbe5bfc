"""Codes and values of what a model holds, where others have written into it."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Nearest
from pvopt.rules.subspace import AllGroups

from .v_step import v_step

__all__ = ["refitted"]


@torch.no_grad()
def refitted(
    rep: Representation,
    weight: Tensor,
    *,
    options: FitOptions | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Representation, float]:
    r"""Represent a weight that was written by others, as closely as either way does.

    The nearest codes with the present values, or a fresh fit: what is closer.

    Args:
        rep: present codes and values; stay.
        weight: ``[*shape]``.
        options: how hard the fit tries.
        generator: source of random draws; None seeds a fresh one with 0.

    Returns:
        Codes and values, and the relative squared error :math:`\|w - \hat w\|^2 / \|w\|^2`.

    Raises:
        ValueError: if the weight is not finite.

    Example:
        >>> import torch
        >>> from pvopt import SharedValues
        >>> from pvopt.engine.refit import refitted
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> new, error = refitted(rep, torch.tensor([[0.75, 0.25]]))
        >>> new.decode(), error
        (tensor([[0.7500, 0.2500]]), 0.0)
    """
    target = weight.detach().to(rep.dtype)
    if not bool(target.isfinite().all()):
        raise ValueError("weight must be finite")
    if generator is None:
        generator = torch.Generator(target.device).manual_seed(0)
    nearest = rep.clone()
    draws = Draws.of(generator, target.device)
    v_step(nearest, target, rounding=Nearest(), subspace=AllGroups(), draws=draws)
    size = float(target.square().sum()) or 1.0
    error = float((nearest.decode() - target).square().sum()) / size
    if error == 0:
        return nearest, error
    fitted = rep.scheme.fit(target, options=options, generator=generator)
    other = float((fitted.decode() - target).square().sum()) / size
    return (fitted, other) if other < error else (nearest, error)
