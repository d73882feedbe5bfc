"""GPTQ, or LDLQ: round column by column, the rest of each row makes up for the error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.parametrizations.contract import Parametrization
from pvopt.metrics.block import BlockMetric
from pvopt.parametrizations.layout import GroupLayout
from pvopt.parametrizations.representation import Representation, code_dtype

from .contract import Initialization
from .fit import Fit
from .hessian import damped

__all__ = ["GPTQ"]

# Columns whose errors are passed on to those outside of the batch by one matrix product.
_BATCH = 128


@dataclass(frozen=True)
class GPTQ(Initialization):
    r"""Round block columns one after the other; later columns take up the error of earlier ones.

    With the damped Hessian factored as :math:`H = R R'`, R upper triangular (for blocks of several
    columns its block diagonal gives the block LDL' decomposition), block column :math:`j` is
    rounded in its own conditional metric, and its error moves the columns after it:

    .. math:: q_j = \arg\min_q \|(q - w_j) R_{jj}\|^2, \qquad
        w_{>j} \leftarrow w_{>j} - (w_j - q_j)\, R_{jj}\, (R^{-1})_{j, >j}

    The recursion takes any parametrization: scalar grids, where it is GPTQ, and groups of several
    inputs, where it is the LDLQ of QuIP. Values that belong to some columns alone (the scales of a
    grid's group) are fitted when the first of these columns is reached, to what the columns have
    become by then; other values are those of the weighted fit.

    Args:
        damping: fraction of the Hessian's mean diagonal that is added to it.
        activation_order: whether columns are visited in the order of decreasing diagonal of the
            Hessian: errors of loud inputs are passed on to quiet ones. Otherwise from left to
            right.

    Raises:
        TypeError: if ``activation_order`` is no bool.
        ValueError: if ``damping`` is negative or not finite.

    Example:
        >>> from pvopt import UniformGrid
        >>> from pvopt.starts import layer_error
        >>> draws = torch.Generator().manual_seed(0)
        >>> inputs = torch.randn(64, 4, generator=draws) @ torch.randn(4, 16, generator=draws)
        >>> weight = torch.randn(8, 16, generator=draws)
        >>> hessian, grid = inputs.T @ inputs, UniformGrid(bits=2)
        >>> calibrated = GPTQ().start(weight, grid, hessian=hessian).decode()
        >>> error = layer_error(weight, calibrated, hessian)
        >>> bool(error < 0.5 * layer_error(weight, grid.fit(weight).decode(), hessian))
        True

    References:
        GPTQ (arXiv 2210.17323), section 3; QuIP (arXiv 2307.13304), section 3.1, and QuIP#
        (arXiv 2402.04396), section 4.1, for blocks.
    """

    damping: float = 0.01
    activation_order: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping must be at least 0 and finite, got {self.damping}")
        if not isinstance(self.activation_order, bool):
            raise TypeError(f"activation_order must be a bool, got {self.activation_order!r}")

    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        hessian: Tensor | None,
        generator: torch.Generator,
    ) -> Representation:
        assert hessian is not None
        shape = tuple(weight.shape)
        layout = parametrization.layout(shape)
        own_space = type(parametrization).split is Parametrization.split
        value_columns = parametrization.value_columns(shape) if own_space else None
        if value_columns is None:
            # In a rotated space all inputs are about equally loud, so there is nothing to weigh.
            fit = Fit(weighted=own_space)
            rep = fit.start(weight, parametrization, hessian=hessian, generator=generator)
        else:
            rep = _empty(weight, parametrization)
        metric = damped(parametrization.split_hessian(hessian, shape), self.damping)
        groups = layout.merge(parametrization.split(weight)).reshape(
            layout.rows * layout.out_group, -1
        )
        order = self._order(metric, layout)
        _Recursion(rep, groups, metric, order, value_columns, generator).run()
        return rep

    def _order(self, metric: Tensor, layout: GroupLayout) -> Tensor:
        """Return the block columns in the order of their visits, ``[cols]``."""
        if not self.activation_order:
            return torch.arange(layout.cols, device=metric.device)
        loudness = metric.diagonal().view(layout.cols, layout.in_group).sum(1)
        return loudness.argsort(descending=True, stable=True)


def _empty(weight: Tensor, parametrization: Parametrization) -> Representation:
    """Return a representation whose codes and values are still to be set."""
    shape = tuple(weight.shape)
    codes = torch.zeros(
        parametrization.code_shape(shape),
        dtype=code_dtype(parametrization.code_bits),
        device=weight.device,
    )
    shapes = parametrization.value_shapes(shape)
    values = {name: weight.new_zeros(size) for name, size in shapes.items()}
    return Representation(parametrization, codes, values, shape)


class _Recursion:
    """The walk over the columns of one weight.

    Args:
        rep: codes (and values) to set.
        weight: ``[out, in]`` in the space of the groups; not changed.
        metric: ``[in, in]`` float64, positive definite.
        order: ``[cols]`` the block columns in the order of their visits.
        value_columns: number of neighbouring columns with values of their own, or None.
        generator: source of random draws.
    """

    def __init__(
        self,
        rep: Representation,
        weight: Tensor,
        metric: Tensor,
        order: Tensor,
        value_columns: int | None,
        generator: torch.Generator,
    ) -> None:
        self.rep, self.generator = rep, generator
        self.layout = layout = rep.layout
        self.order = order.tolist()
        inside = torch.arange(layout.in_group, device=order.device)
        self.columns = (order[:, None] * layout.in_group + inside).flatten()  # [in], as visited
        self.places = self.columns.argsort()  # where a column is visited
        factor, inverse = _factor(metric[self.columns][:, self.columns])
        self.factor, self.inverse = factor.to(weight.dtype), inverse.to(weight.dtype)
        self.weight = weight[:, self.columns]  # a copy, in the order of the visits
        self.importance = metric.diagonal().to(weight.dtype)
        self.value_columns = value_columns
        self.rows = torch.arange(layout.rows, device=order.device)

    def run(self) -> None:
        width = self.layout.in_group
        batch = max(1, _BATCH // width) * width
        begun: set[int] = set()
        for start in range(0, len(self.columns), batch):
            stop = min(start + batch, len(self.columns))
            errors = torch.zeros_like(self.weight[:, start:stop])  # scaled by the factor
            for left in range(start, stop, width):
                column, right = self.order[left // width], left + width
                if self.value_columns is not None:
                    group = column * width // self.value_columns
                    if group not in begun:
                        begun.add(group)
                        self._refit(group, errors[:, : left - start], start)
                here = slice(left, right)
                decoded = self._round(column, self.weight[:, here], self.factor[here, here])
                error = (self.weight[:, here] - decoded) @ self.factor[here, here]
                errors[:, left - start : right - start] = error
                self.weight[:, right:stop] -= error @ self.inverse[here, right:stop]
            self.weight[:, stop:] -= errors @ self.inverse[start:stop, stop:]

    def _round(self, column: int, target: Tensor, factor: Tensor) -> Tensor:
        """Set the codes of a block column; return what it decodes to, ``[out, in_group]``."""
        rep, layout = self.rep, self.layout
        parametrization = rep.parametrization
        groups = self.rows * layout.cols + column
        goal = target.reshape(layout.rows, layout.group_size)  # rows of a group are neighbours
        metric = None
        if layout.in_group > 1:
            block = factor @ factor.T
            if layout.out_group > 1:
                block = torch.kron(torch.eye(layout.out_group).to(block), block)
            metric = BlockMetric(block)
        found = parametrization.candidates(
            goal, rep, groups, 1, metric=metric, generator=self.generator
        )
        codes = found.codes[:, 0]
        decoded = parametrization.decode_moved(goal, rep, groups, codes)
        parametrization.move_(goal, rep, groups, codes)
        return decoded.reshape(target.shape)

    def _refit(self, group: int, errors: Tensor, start: int) -> None:
        """Fit the values of a group of columns to what these have become."""
        assert self.value_columns is not None
        first = group * self.value_columns
        places = self.places[first : first + self.value_columns]
        present = self.weight[:, places]
        # Columns beyond the present batch have not been told of its errors yet.
        outside = places >= start + max(1, _BATCH // self.layout.in_group) * self.layout.in_group
        late = errors @ self.inverse[start : start + errors.shape[1], places]
        present = torch.where(outside, present - late, present)
        importance = self.importance[first : first + self.value_columns].expand_as(present)
        fitted = self.rep.parametrization.fit(
            present, metric=importance / importance.mean(), generator=self.generator
        )
        for name, value in self.rep.values.items():
            value[:, group : group + 1] = fitted.values[name]


def _factor(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return upper triangular ``R`` with ``R R' = metric``, and its inverse."""
    lower, failed = torch.linalg.cholesky_ex(metric.flip(0, 1))
    if failed:
        raise ValueError(
            "damping must be positive: the hessian is singular to rounding, some inputs depend "
            "on others"
        )
    factor = lower.flip(0, 1)
    eye = torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    return factor, torch.linalg.solve_triangular(factor, eye, upper=True)
