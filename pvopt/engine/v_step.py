"""The V step on one weight: select groups, search, round, stay in the trust region."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pvopt_kernels.ops import group_sq_norms

from .searches import CodeSearch, SeparableSearch
from .moves import Moves
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Rounding
from .column_descent import ColumnDescent, RowMetric
from pvopt.rules.subspace import Decreases, Subspace
from pvopt.rules.trust_region import TrustRegion

__all__ = ["v_step"]


def v_step(
    rep: Representation,
    target: Tensor,
    decoded: Tensor,
    *,
    rounding: Rounding,
    subspace: Subspace,
    trust_region: TrustRegion | None = None,
    metric: Tensor | RowMetric | None = None,
    generator: torch.Generator | None = None,
) -> int:
    r"""Move codes of the selected groups towards a target, the values fixed.

    .. math:: z_g \leftarrow \mathrm{round}_D(t_g) \ \text{for}\ g \in S, \qquad
        S = \mathrm{select}\big(\|t_g - w_g\|\big)

    Groups whose target equals their weight never move, whatever the rules say. The metric decides
    which code is near and what a change is worth; the norms given to subspace rules and the trust
    region are Euclidean.

    Args:
        rep: codes (changed in place) and values.
        target: ``[*shape]`` the latent weight, or the weight after a plain optimizer step.
        decoded: ``[num_groups, group_size]``, ``rep.parametrization.decode_groups(rep)``; changed
            in place along with the codes.
        rounding: which candidate to take.
        subspace: which groups may move.
        trust_region: bound on the change of the whole weight, or None.
        metric: ``[*shape]`` non-negative weights ``D`` of the squared errors; or one that couples
            the columns of each row, in which block columns are searched one after the other
            (:func:`pvopt.row_metric_search`); None for 1.
        generator: source of random draws.

    Returns:
        Number of groups whose code changed.

    Example:
        >>> from pvopt import AllGroups, Nearest, SharedValues
        >>> rep = SharedValues(2).fit(torch.tensor([[0.0, 1.0]]))
        >>> decoded = rep.parametrization.decode_groups(rep)
        >>> target = torch.tensor([[0.7, 0.9]])
        >>> v_step(rep, target, decoded, rounding=Nearest(), subspace=AllGroups())
        1
        >>> rep.decode()
        tensor([[1., 1.]])

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3 and algorithm 2.
    """
    parametrization = rep.parametrization
    goals = parametrization.split(target.to(decoded.dtype))  # [G, g]
    magnitudes = group_sq_norms(goals, decoded, in_group=decoded.shape[1]).sqrt()
    if isinstance(metric, RowMetric):
        search: CodeSearch = ColumnDescent(rep, target, decoded, metric)
    else:
        if metric is not None:
            metric = parametrization.split_diagonal(metric).to(decoded.dtype)
        search = SeparableSearch(rep, goals, decoded, metric)
    decreases = None
    if subspace.needs_decreases:
        bounds = torch.where(magnitudes > 0, search.bounds(), 0.0)
        decreases = Decreases(bounds, partial(search.decreases, generator=generator))
    groups = subspace.select(
        magnitudes, generator, ordered=trust_region is not None, decreases=decreases
    )
    groups = groups[magnitudes.index_select(0, groups) > 0]
    if len(groups) == 0:
        return 0
    moves = search.moves(groups, rounding=rounding, generator=generator)
    if trust_region is not None:
        moves = _within(trust_region, moves, search, decoded, rounding, generator)
    moves.make(rep, decoded)
    return len(moves)


def _within(
    trust_region: TrustRegion,
    moves: Moves,
    search: CodeSearch,
    decoded: Tensor,
    rounding: Rounding,
    generator: torch.Generator | None,
) -> Moves:
    """Return the first moves that fit into the trust region."""
    squared_norm = decoded.square().sum()
    while True:
        changes = (moves.decoded - decoded.index_select(0, moves.groups)).square().sum(1)
        accepted = trust_region.accept(changes, squared_norm)
        if accepted == len(moves):
            return moves
        if not search.coupled:
            return moves.take(slice(accepted))
        # The accepted groups were searched for company that stays out: search them again.
        moves = search.moves(moves.groups[:accepted], rounding=rounding, generator=generator)
