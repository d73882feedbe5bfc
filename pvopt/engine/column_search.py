"""Codes in the metric of a layer's inputs: coordinate descent over block columns."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.metrics.contract import Metric
from pvopt.parametrizations.options import SearchOptions
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Nearest, Rounding

from .dense_search import DenseSearch

__all__ = ["row_metric_search"]


@torch.no_grad()
def row_metric_search(
    rep: Representation,
    target: Tensor,
    metric: Metric,
    *,
    groups: Tensor | None = None,
    options: SearchOptions | None = None,
    passes: int = 1,
    rounding: Rounding | None = None,
    generator: Draws | torch.Generator | None = None,
) -> int:
    r"""Move codes, values fixed, so that a layer's outputs come closer to a target's.

    .. math:: \min_z \; \mathrm{tr}\,(W_q - W)\, H\, (W_q - W)' = \|X (W_q - W)'\|_F^2,
        \qquad H = X'X

    Block columns are visited one after the other. Each group takes the best code given all other
    codes of its row (see ``pvopt.metrics.row.ColumnCosts``), so no visit raises the error with
    :class:`pvopt.Nearest`. When a pass changes nothing, the codes are optimal group by group:
    no change of one group alone is better, as far as the parametrization's search is exact.

    Cost of a pass: ``rows * columns**2`` multiplications, and one search of every group.

    Args:
        rep: codes (changed in place; values too, where they belong to a code) and values, of one
            matrix.
        target: ``[*shape]``, the weight to come close to.
        metric: between weights, such as :class:`pvopt.Row` of ``X'X``. If it is nearly singular,
            damp it: block targets are then better conditioned.
        groups: ``[n]`` numbers of the groups that may move; None stands for all.
        options: how hard the search tries.
        passes: limit of passes over all columns; a pass that changes nothing is the last.
        rounding: which candidate to take; None for the nearest.
        generator: source of random draws (the order of codebooks in a beam search).

    Returns:
        Number of changes of a code.

    Raises:
        ValueError: if the metric does not fit, ``passes`` is not positive, or there are several
            matrices.

    Example:
        >>> import torch
        >>> from pvopt import Row, UniformGrid, row_metric_search
        >>> weight = torch.tensor([[0.4, 0.4, 3.0]])
        >>> rep = UniformGrid(bits=2).fit(torch.tensor([[0.0, 1.0, 3.0]]))
        >>> rep.write_codes_(None, torch.tensor([[0], [0], [3]]))
        >>> inputs = torch.tensor([[1.0, 1.0, 0.0], [0.1, 0.0, 1.0]])
        >>> metric = Row(inputs.T @ inputs)
        >>> row_metric_search(rep, weight, metric)  # 0.4 + 0.4 is nearer to 1 than to 0
        1
        >>> rep.decode()
        tensor([[1., 0., 3.]])

    References:
        AQLM (arXiv 2401.06118), section 3.2; GPTQ (arXiv 2210.17323), for the compensation.
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    if not (rep.view.plain and rep.count == 1):
        raise ValueError(f"rep must be of one matrix, got {rep.scheme}; see rep.matrices.members()")
    if groups is None:
        groups = torch.arange(rep.layout.num_groups, device=rep.device)
    draws, changes = Draws.of(generator, rep.device), 0
    for _ in range(passes):
        search = DenseSearch(
            rep,
            target,
            metric,
            rounding=rounding or Nearest(),
            options=options or SearchOptions(),
            draws=draws,
        )
        moves = search.moves(groups[None], groups)
        moves.make_(rep)
        moved = int(moves.moved.sum())
        changes += moved
        if moved == 0:
            break
    return changes
