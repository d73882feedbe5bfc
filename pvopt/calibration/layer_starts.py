"""Start weights on X'X of their inputs; without inputs, by the fit of their format."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pvopt.core.views import plain_view
from pvopt.metrics.row import Row
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme
from pvopt.starts.contract import Start

__all__ = ["start_experts", "start_matrix"]


def start_matrix(
    weight: Tensor,
    scheme: Scheme,
    start: Start,
    hessian: Tensor,
    generator: torch.Generator,
    target: Tensor | None = None,
) -> tuple[Representation, float]:
    """Start the weight of a layer.

    Args:
        weight: dense.
        scheme: of the weight.
        start: how.
        hessian: ``X'X``, ``[in, in]``; zero if no token reached the layer.
        generator: of random draws.
        target: what the start is given in place of the weight, or None.

    Returns:
        The representation and ``||X (W - W_q)'|| / ||X W'||``, NaN without tokens.

    Example:
        >>> import torch
        >>> from pvopt import Scheme, SharedValues
        >>> from pvopt.calibration.layer_starts import start_matrix
        >>> from pvopt.starts import Fit
        >>> scheme, generator = Scheme(SharedValues(num_values=2)), torch.Generator()
        >>> weight = torch.tensor([[0.0, 1.0]])
        >>> start_matrix(weight, scheme, Fit(), torch.eye(2), generator)[1]
        0.0
    """
    if not bool(hessian.any()):
        return scheme.fit(weight, generator=generator), math.nan
    metric = Row(hessian)
    given = weight if target is None else target
    rep = start.start(given, scheme, metric=metric, generator=generator)
    (dense,), (decoded,) = scheme.view.matrices(weight), scheme.view.matrices(rep.decode())
    return rep, metric.relative_error(dense, decoded)


def start_experts(
    name: str,
    weight: Tensor,
    scheme: Scheme,
    start: Start,
    hessians: Tensor,
    generator: torch.Generator,
) -> tuple[Representation, dict[str, float]]:
    """Start the experts of one parameter, each on its own tokens.

    Args:
        name: of the parameter.
        weight: ``[experts, ...]``.
        scheme: of the weight.
        start: how.
        hessians: ``[experts, in, in]``.
        generator: of random draws.

    Returns:
        The representation; by the name of the parameter the mean of the errors of experts with
        tokens, and NaN for each expert without, as ``NAME[NUMBER]``.

    Raises:
        ValueError: if no expert has a token: the module multiplies in a way that is not seen.
    """
    if not bool(hessians.any()):
        raise ValueError("what its experts are given cannot be observed; exclude it")
    plain = Scheme(scheme.parametrization, scheme.space, plain_view())
    found, errors, lacking = [], [], {}
    for number, matrix in enumerate(scheme.view.matrices(weight)):
        dense = matrix.contiguous()
        rep, error = start_matrix(dense, plain, start, hessians[number], generator)
        found.append(rep)
        if math.isnan(error):
            lacking[f"{name}[{number}]"] = error
        else:
            errors.append(error)
    joined = Representation.joined(found, scheme.view, tuple(weight.shape))
    return joined, {name: sum(errors) / len(errors), **lacking}
