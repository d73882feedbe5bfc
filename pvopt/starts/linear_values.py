"""The best values for given codes, in closed form, in the metric of a layer's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt.metrics.row import Row
from pvopt.parametrizations.representation import Representation

__all__ = ["MOST_ENTRIES", "fit_values_"]

#: Entries of a shared table at most: each costs a product with the Hessian.
MOST_ENTRIES = 256
# How much smaller a scale becomes that would change its sign.
_MOST_SHRINKING = 0.9


def fit_values_(rep: Representation, weight: Tensor, metric: Row) -> None:
    r"""Give values their best, one tensor after the other, codes as they are.

    What a representation decodes to is linear in each tensor of values, :math:`w = w_0 + J v`, so

    .. math:: J' H J\, v = J' H (w - w_0)

    Values that belong to columns of their own (scales and zero points of a grid) make a system for
    each row, a shared table makes one for the whole weight. No row gets worse. Scales keep their
    sign: a row where one would not goes part of the way.

    Args:
        rep: of one matrix, in its own space; its values are changed in place.
        weight: ``[*shape]``, in the dtype of the values.
        metric: of the inputs, in that dtype, positive definite.

    Example:
        >>> import torch
        >>> from pvopt import Row, SharedValues
        >>> from pvopt.starts.linear_values import fit_values_
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
        >>> fit_values_(rep, torch.tensor([[0.0, 2.0, 0.0, 3.0]]), Row(torch.eye(4)))
        >>> rep.values["values"]
        tensor([0.0000, 2.5000])
    """
    hessian = metric.hessian
    by_row = rep.parametrization.value_columns(rep.inner_shape) is not None
    for name, value in rep.values.items():
        slope = ((weight - rep.decode()).view(-1, len(hessian))) @ hessian
        zero = _decoded(rep, name, torch.zeros_like(value)).view_as(slope)
        system = _rows if by_row else _table
        matrix, goal = system(rep, name, zero, slope, hessian)
        change = _solved(matrix, goal)
        gain = (change * (2 * goal - torch.bmm(matrix, change[..., None])[..., 0])).sum(1)
        usable = change.isfinite().all(1) & (gain > 0)
        flat = value.view(len(usable), -1)
        if by_row and name in rep.parametrization.scaling:
            room = torch.where(flat * (flat + change) > 0, 1.0, _MOST_SHRINKING * flat / -change)
            change = change * room.amin(1, keepdim=True)
        flat += torch.where(usable[:, None], change, 0.0)


def _decoded(rep: Representation, name: str, value: Tensor) -> Tensor:
    """Return the weight with another tensor of values."""
    values = {**rep.values, name: value}
    other = Representation(rep.parametrization, rep.codes, values, rep.shape, check=False)
    return other.decode()


def _rows(
    rep: Representation, name: str, zero: Tensor, slope: Tensor, hessian: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the systems ``[rows, k, k]``, ``[rows, k]`` of values that have columns of their own.

    Args:
        rep: codes and values.
        name: of the value, ``[rows, k]``.
        zero: ``[rows, in]`` what is decoded where that value is 0.
        slope: ``[rows, in]``, :math:`(w - w_q) H`.
        hessian: ``[in, in]``.
    """
    value = rep.values[name]
    shape = (*value.shape, -1)  # [rows, k, columns of a value]
    each = (_decoded(rep, name, torch.ones_like(value)).view_as(zero) - zero).view(shape)
    goal = (each * slope.view(shape)).sum(2)
    blocks = hessian.view(value.shape[1], -1, len(hessian))  # [k, columns of a value, in]
    parts = [((each[:, k] @ block).view(shape) * each).sum(2) for k, block in enumerate(blocks)]
    return torch.stack(parts, dim=1), goal


def _table(
    rep: Representation, name: str, zero: Tensor, slope: Tensor, hessian: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the one system ``[1, k, k]``, ``[1, k]`` of a table of ``k`` entries."""
    value = rep.values[name]
    units = torch.eye(value.numel()).to(value).view(-1, *value.shape)
    each = torch.stack([_decoded(rep, name, unit).view_as(zero) - zero for unit in units])
    matrix = (each @ hessian).flatten(1) @ each.flatten(1).T
    return matrix[None], (each.flatten(1) @ slope.flatten())[None]


def _solved(matrix: Tensor, goal: Tensor) -> Tensor:
    """Solve systems ``[n, k, k]`` for ``[n, k]``; what nothing depends on stays 0."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    size = torch.where(diagonal > 0, diagonal, 1.0).sqrt()  # to a diagonal of 1
    scaled = (matrix / size[:, :, None] / size[:, None, :]).double()
    scaled.diagonal(dim1=1, dim2=2).copy_(torch.where(diagonal > 0, 1 + 1e-6, 1.0))
    factor = torch.linalg.cholesky_ex(scaled)[0]
    right = (goal / size).double()[..., None]
    return (torch.cholesky_solve(right, factor)[..., 0] / size).to(goal.dtype)
