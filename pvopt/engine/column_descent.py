"""The V step in a metric that all rows of a weight share: coordinate descent over columns."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor

from .searches import CodeSearch, unchanged
from .moves import Moves, round_groups
from pvopt.metrics.block import BlockMetric
from pvopt.parametrizations.layout import matrix_shape
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Nearest, Rounding

__all__ = ["RowMetric", "row_metric_search"]


@dataclass(frozen=True, eq=False)
class RowMetric:
    r"""A metric between weights that couples the columns of each row alike.

    .. math:: \|W\|_H^2 = \mathrm{tr}\, W H W' = \|X W'\|_F^2 \quad \text{for } H = X'X

    Args:
        hessian: ``[columns, columns]`` symmetric positive semidefinite ``H``, floating.

    Raises:
        TypeError: if the matrix is not floating.
        ValueError: if it is not square, not finite, or has a negative diagonal.

    Example:
        >>> inputs = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        >>> RowMetric(inputs.T @ inputs).squared_norm(torch.tensor([[1.0, 2.0]]))
        tensor(10.)
    """

    hessian: Tensor

    def __post_init__(self) -> None:
        H = self.hessian
        if not H.is_floating_point():
            raise TypeError(f"hessian must be floating, got {H.dtype}")
        if H.dim() != 2 or H.shape[0] != H.shape[1]:
            raise ValueError(f"hessian must be square, got shape {list(H.shape)}")
        if not H.isfinite().all():
            raise ValueError("hessian must be finite, got NaN or infinite entries")
        if (H.diagonal() < 0).any():
            raise ValueError("hessian must have a non-negative diagonal, got a negative entry")

    def squared_norm(self, weight: Tensor) -> Tensor:
        """Return the squared norm of a weight ``[*shape]``, a scalar.

        Example:
            >>> RowMetric(torch.eye(2)).squared_norm(torch.tensor([[1.0, 2.0]]))
            tensor(5.)
        """
        rows = weight.reshape(matrix_shape(weight.shape))
        return ((rows @ self.hessian.to(rows)) * rows).sum()


class ColumnDescent(CodeSearch):
    r"""Search codes column by column in a row metric.

    With the error :math:`E = W_q - W` of all groups, the error as a function of one group
    :math:`c` in block column :math:`j`, everything else fixed, is up to a constant

    .. math:: \|c - t\|_{H_{jj}}^2, \qquad t = w_j - (E H)_j\, H_{jj}^{-1}

    the exact block target: the part that the group itself must make up for the errors of the rest
    of its row. All rows of a column are independent, so they are searched at once.

    Args:
        rep: codes and values; not changed.
        target: ``[*shape]``.
        decoded: ``[num_groups, group_size]``, the groups of ``rep``; not changed.
        metric: the metric of the rows.

    Raises:
        ValueError: if the metric does not fit the weight's columns.
    """

    coupled = True

    def __init__(
        self, rep: Representation, target: Tensor, decoded: Tensor, metric: RowMetric
    ) -> None:
        parametrization, layout = rep.parametrization, rep.layout
        columns = layout.cols * layout.in_group
        if tuple(metric.hessian.shape) != (columns, columns):
            raise ValueError(
                f"hessian must have shape [{columns}, {columns}] for a weight of shape "
                f"{list(rep.shape)}, got {list(metric.hessian.shape)}"
            )
        self.rep = rep
        self.decoded = decoded
        self.hessian = parametrization.split_hessian(metric.hessian, rep.shape).to(decoded)
        goals = parametrization.split(target.to(decoded.dtype))
        self.error = self._by_rows(decoded - goals)  # [rows, out_group, cols, in_group]

    def moves(
        self,
        groups: Tensor,
        *,
        rounding: Rounding,
        generator: torch.Generator | None = None,
    ) -> Moves:
        """Round groups, each to the best code given those of the columns before it.

        Args:
            groups: ``[n]`` distinct group numbers, the only ones that may move.
            rounding: which candidate to take.
            generator: source of random draws.

        Returns:
            The moves in the order of the groups. Made together they do not raise the error, if
            the rounding takes the nearest code.
        """
        error = self.error.clone()
        parts, places = [], []
        for column, index in self._columns(groups):
            chosen = groups[index]
            goals, metric = self._block(error, chosen, column)
            found = round_groups(
                self.rep, chosen, goals, rounding=rounding, metric=metric, generator=generator
            )
            change = found.decoded - self.decoded[found.groups]
            rows = found.groups // self.rep.layout.cols
            error[rows, :, column] += change.view(len(rows), *self._block_shape)
            parts.append(found)
            places.append(index[torch.isin(chosen, found.groups, assume_unique=True)])
        if not parts:
            return round_groups(self.rep, groups, self.decoded[groups], rounding=rounding)
        return Moves.concatenate(parts).take(torch.cat(places).argsort())

    def bounds(self) -> Tensor:
        r"""Return :math:`\tfrac12 (E H)_j H_{jj}^{-1} (E H)_j'` for every group."""
        layout = self.rep.layout
        slope = self.error.view(-1, self.hessian.shape[0]) @ self.hessian  # [rows * out, columns]
        slope = slope.view(-1, layout.cols, layout.in_group)
        inverses = torch.stack([self._metric(j).inverse for j in range(layout.cols)])
        parts = (torch.einsum("rji,jik->rjk", slope, inverses) * slope).sum(2)
        return 0.5 * parts.view(layout.rows, layout.out_group, layout.cols).sum(1).flatten()

    def decreases(self, groups: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Search groups, all others as they are; return half of what the squared error loses."""
        result = self.decoded.new_empty(len(groups))
        for column, index in self._columns(groups):
            chosen = groups[index]
            goals, metric = self._block(self.error, chosen, column)
            present = metric.squared_norms(goals - self.decoded[chosen])
            with unchanged(generator):
                found = self.rep.parametrization.candidates(
                    goals, self.rep, chosen, metric=metric, generator=generator
                )
            result[index] = (0.5 * (present - found.errors[:, 0])).clamp_min_(0)
        return result

    @property
    def _block_shape(self) -> tuple[int, int]:
        layout = self.rep.layout
        return layout.out_group, layout.in_group

    def _by_rows(self, groups: Tensor) -> Tensor:
        """Arrange all groups by block rows, ``[rows, out_group, cols, in_group]``, contiguous."""
        layout = self.rep.layout
        return (
            groups.view(layout.rows, layout.cols, *self._block_shape).transpose(1, 2).contiguous()
        )

    def _columns(self, groups: Tensor) -> list[tuple[int, Tensor]]:
        """Return the block columns that hold some of the groups, and the places of those."""
        order = (groups % self.rep.layout.cols).argsort(stable=True)
        present, counts = (groups[order] % self.rep.layout.cols).unique_consecutive(
            return_counts=True
        )
        return list(zip(present.tolist(), order.split(counts.tolist()), strict=True))

    def _metric(self, column: int) -> BlockMetric:
        """Return the metric of the columns of a block column."""
        in_group = self.rep.layout.in_group
        here = slice(column * in_group, (column + 1) * in_group)
        return BlockMetric(self.hessian[here, here])

    def _block(self, error: Tensor, groups: Tensor, column: int) -> tuple[Tensor, BlockMetric]:
        """Return the block targets ``[n, group_size]`` of groups of a column, and their metric."""
        out_group, in_group = self._block_shape
        rows = groups // self.rep.layout.cols
        # A search of all groups has every row here, in order: nothing to copy.
        every = len(rows) == len(error) and bool((rows[1:] > rows[:-1]).all())
        taken = error if every else error[rows]
        taken = taken.view(len(rows) * out_group, -1)  # [n * out_group, columns]
        block = self._metric(column)
        slope = taken @ self.hessian[:, column * in_group : (column + 1) * in_group]
        shift = (slope @ block.inverse).view(len(rows), -1)
        return self.decoded[groups] - shift, block


@torch.no_grad()
def row_metric_search(
    rep: Representation,
    target: Tensor,
    hessian: Tensor,
    *,
    groups: Tensor | None = None,
    beam_size: int | None = None,
    passes: int = 1,
    rounding: Rounding | None = None,
    generator: torch.Generator | None = None,
) -> int:
    r"""Move codes, values fixed, so that a layer's outputs come closer to a target's.

    .. math:: \min_z \; \mathrm{tr}\,(W_q - W)\, H\, (W_q - W)' = \|X (W_q - W)'\|_F^2,
        \qquad H = X'X

    Block columns are visited one after the other. Each group takes the best code given all other
    codes of its row (see ``ColumnDescent``), so no visit raises the error with
    :class:`pvopt.Nearest`. When a pass changes nothing, the codes are optimal group by group:
    no change of one group alone is better, as far as the parametrization's search is exact.

    Cost of a pass: ``rows * columns**2`` multiplications, and one search of every group.

    Args:
        rep: codes (changed in place; values too, where they belong to a code) and values.
        target: ``[*shape]``, the weight to come close to.
        hessian: ``[columns, columns]`` symmetric positive semidefinite; any positive multiple of
            ``X'X``. If it is nearly singular, damp it: block targets are then better conditioned.
        groups: ``[n]`` numbers of the groups that may move; None stands for all.
        beam_size: of the search in place of the parametrization's own ``beam_size``.
        passes: limit of passes over all columns; a pass that changes nothing is the last.
        rounding: which candidate to take; None for the nearest.
        generator: source of random draws (the order of codebooks in a beam search).

    Returns:
        Number of changes of a code.

    Raises:
        TypeError: if a beam size is given to a parametrization that has none.
        ValueError: if the Hessian does not fit, or ``passes`` is not positive.

    Example:
        >>> from pvopt import UniformGrid
        >>> weight = torch.tensor([[0.4, 0.4, 3.0]])
        >>> rep = UniformGrid(2).fit(torch.tensor([[0.0, 1.0, 3.0]]))
        >>> rep.codes.copy_(torch.tensor([[[0], [0], [3]]], dtype=torch.uint8)).shape
        torch.Size([1, 3, 1])
        >>> inputs = torch.tensor([[1.0, 1.0, 0.0], [0.1, 0.0, 1.0]])
        >>> row_metric_search(rep, weight, inputs.T @ inputs)  # 0.4 + 0.4 is nearer to 1 than to 0
        1
        >>> rep.decode()
        tensor([[1., 0., 3.]])

    References:
        AQLM (arXiv 2401.06118), section 3.2; GPTQ (arXiv 2210.17323), for the compensation.
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    if beam_size is not None:
        rep = _with_beam(rep, beam_size)
    rounding = Nearest() if rounding is None else rounding
    if groups is None:
        groups = torch.arange(rep.layout.num_groups, device=rep.codes.device)
    metric = RowMetric(hessian)
    decoded = rep.parametrization.decode_groups(rep)
    changes = 0
    for _ in range(passes):
        search = ColumnDescent(rep, target, decoded, metric)
        moves = search.moves(groups, rounding=rounding, generator=generator)
        moves.make(rep, decoded)
        changes += len(moves)
        if len(moves) == 0:
            break
    return changes


def _with_beam(rep: Representation, beam_size: int) -> Representation:
    """Return the same codes and values under settings of another beam size."""
    settings = rep.parametrization
    names = {f.name for f in fields(settings)} if is_dataclass(settings) else set()
    if "beam_size" not in names:
        raise TypeError(f"beam_size must be None: {type(settings).__name__} has none")
    settings = replace(settings, beam_size=beam_size)  # pyright: ignore[reportArgumentType]
    return Representation(settings, rep.codes, rep.values, rep.shape)
