"""GPTQ, or LDLQ: round column by column, the rest of each row makes up for the error."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_bool, check_number
from pvopt.metrics.block import Block
from pvopt.metrics.contract import Metric
from pvopt.metrics.diagonal import Diagonal
from pvopt.metrics.row import Row
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import FitOptions, SearchOptions
from pvopt.parametrizations.query import Query
from pvopt.parametrizations.representation import Representation

from .contract import STARTS, Start
from .damping import damped_cholesky
from .fit import Fit

__all__ = ["GPTQ"]

# Columns whose errors are passed on to those outside of the batch by one matrix product.
_BATCH = 128


@STARTS.register(
    ShortForm.word(
        "gptq",
        "column by column, later ones make up for the errors (LDLQ for groups of inputs)",
        example="gptq, gptq[damping=0.02]",
    )
)
@dataclass(frozen=True, kw_only=True)
class GPTQ(Start):
    r"""Round block columns one after the other; later columns take up the error of earlier ones.

    With the damped Hessian factored as :math:`H = R R'`, R upper triangular (for blocks of several
    columns its block diagonal gives the block LDL' decomposition), block column :math:`j` is
    rounded in its own conditional metric, and its error moves the columns after it:

    .. math:: q_j = \arg\min_q \|(q - w_j) R_{jj}\|^2, \qquad
        w_{>j} \leftarrow w_{>j} - (w_j - q_j)\, R_{jj}\, (R^{-1})_{j, >j}

    The recursion takes any parametrization: scalar grids, where it is GPTQ, and groups of several
    inputs, where it is the LDLQ of QuIP. Values that belong to some columns alone (the scales of a
    grid's group) are fitted when the first of these columns is reached, to what the columns have
    become by then, each counting by its :math:`R_{jj}^2`: what is left of an error once later
    columns have made up for it. Other values are those of the weighted fit.

    Args:
        damping: fraction of the Hessian's mean diagonal that is added to it; more where that does
            not make it positive definite.
        activation_order: whether columns are visited in the order of decreasing diagonal of the
            Hessian: errors of high-energy inputs are passed on to low-energy ones. Otherwise from
            left to right. Which inputs share a scale stays; in the space :class:`pvopt.Permutation`
            those of like energy do, as with act-order's moving groups (``g_idx``).
        search_options: how hard the search of each block column tries.
        fit_options: how hard the fits of values try.

    Raises:
        TypeError: if ``activation_order`` is not a bool.
        ValueError: if ``damping`` is negative or not finite.

    Example:
        >>> import torch
        >>> from pvopt import Row, UniformGrid
        >>> from pvopt.starts import GPTQ
        >>> draws = torch.Generator().manual_seed(0)
        >>> inputs = torch.randn(64, 4, generator=draws) @ torch.randn(4, 16, generator=draws)
        >>> weight = torch.randn(8, 16, generator=draws)
        >>> metric, grid = Row(inputs.T @ inputs), UniformGrid(bits=2)
        >>> rep = GPTQ().start(weight, grid, metric=metric)
        >>> error = metric.relative_error(weight, rep.decode())
        >>> error < 0.7 * metric.relative_error(weight, grid.fit(weight).decode())
        True

    References:
        GPTQ (arXiv 2210.17323), section 3; QuIP (arXiv 2307.13304), section 3.1, and QuIP#
        (arXiv 2402.04396), section 4.1, for blocks.
    """

    damping: float = 0.01
    activation_order: bool = True

    search_options: SearchOptions = field(default_factory=SearchOptions)
    fit_options: FitOptions = field(default_factory=FitOptions)

    needs_metric = Row

    def __post_init__(self) -> None:
        check_number("damping", self.damping, 0.0)
        check_bool("activation_order", self.activation_order)

    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        metric: Metric | None,
        generator: torch.Generator,
    ) -> Representation:
        assert isinstance(metric, Row)
        if parametrization.value_columns(tuple(weight.shape)) is None:
            fit = Fit(weighted=True, fit_options=self.fit_options)
            rep = fit._start(weight, parametrization, metric, generator)
        else:
            rep = _blank(weight, parametrization)
        _Recursion(self, rep, weight, metric, generator).run()
        return rep


def _blank(weight: Tensor, parametrization: Parametrization) -> Representation:
    """Return a representation whose codes and values are still to be set."""
    shape = tuple(weight.shape)
    codes = {
        name: torch.zeros(stream.shape, dtype=stream.dtype, device=weight.device)
        for name, stream in parametrization.streams(shape).items()
    }
    shapes = parametrization.value_shapes(shape)
    values = {name: weight.new_zeros(size) for name, size in shapes.items()}
    return Representation(parametrization, codes, values, shape)


class _Recursion:
    """The walk over the columns of one weight.

    Args:
        settings: of the start.
        rep: codes (and values) to set.
        weight: ``[*shape]``; not changed.
        metric: of the inputs, in float64; not damped yet.
        generator: source of random draws.
    """

    def __init__(
        self,
        settings: GPTQ,
        rep: Representation,
        weight: Tensor,
        metric: Row,
        generator: torch.Generator,
    ) -> None:
        self.settings, self.rep, self.generator = settings, rep, generator
        self.layout = layout = rep.layout
        self.value_columns = rep.parametrization.value_columns(rep.shape)
        energy = metric.hessian.diagonal()
        order = torch.arange(layout.cols, device=weight.device)
        if settings.activation_order:
            of_blocks = energy.view(layout.cols, layout.in_group).sum(1)
            order = of_blocks.argsort(descending=True, stable=True)
        self.order = order.tolist()  # of the block columns
        inside = torch.arange(layout.in_group, device=order.device)
        self.columns = (order[:, None] * layout.in_group + inside).flatten()  # [in], as visited
        self.places = self.columns.argsort()  # where a column is visited
        # Upper triangular R with R R' = H is the lower factor of the reversed order.
        lower = damped_cholesky(metric, settings.damping, self.columns.flip(0))[1]
        factor = lower.flip(0, 1)
        eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=True)
        self.factor, self.inverse = factor.to(weight.dtype), inverse.to(weight.dtype)
        # A copy, in the order of the visits.
        self.weight = weight.view(-1, len(factor))[:, self.columns]
        # What an error of a column costs once the columns after it have made up for it.
        self.cost = factor.diagonal().square()
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
                size = self.value_columns
                if size is not None and (group := column * width // size) not in begun:
                    begun.add(group)
                    self._refit(group, size, errors[:, : left - start], start, stop)
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
        query = Query(
            target=target.reshape(layout.rows, layout.group_size),  # rows of a group are neighbours
            rep=rep,
            groups=self.rows * layout.cols + column,
            metric=Block(factor @ factor.T) if layout.in_group > 1 else None,
            options=self.settings.search_options,
            draws=Draws.of(self.generator, rep.device),
        )
        found = parametrization.candidates(query)
        codes, decoded = found.codes[:, 0], found.decoded
        if decoded is None:
            decoded = parametrization.decode_moved(query, codes)
        parametrization.move_(rep, query.groups, codes, decoded)
        return decoded.reshape(target.shape)

    def _refit(self, group: int, size: int, errors: Tensor, start: int, stop: int) -> None:
        """Fit the values of a group of columns to what these have become.

        Args:
            group: its number.
            size: of a group.
            errors: of the columns of this batch that are rounded already.
            start: of the batch.
            stop: of the batch; columns beyond it have not been told of these errors yet.
        """
        columns = slice(group * size, (group + 1) * size)
        places = self.places[columns]
        present = self.weight[:, places]
        late = errors @ self.inverse[start : start + errors.shape[1], places]
        present = torch.where(places >= stop, present - late, present)
        fitted = self.rep.parametrization.fit(
            present,
            metric=Diagonal(self.cost[places][None]),
            options=self.settings.fit_options,
            generator=self.generator,
        )
        for name, value in self.rep.values.items():
            value[:, group : group + 1] = fitted.values[name]
        for name, stream in self.rep.streams.items():
            if not stream.moves:
                self.rep.codes[name][:, group : group + 1] = fitted.codes[name]
