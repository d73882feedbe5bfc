"""The V step on one weight or a stack: select groups, search, round, stay in the trust region."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.metrics.contract import Metric
from pvopt.metrics.matrices import WeightMetric, matrix_metrics
from pvopt.parametrizations.options import SearchOptions
from pvopt.parametrizations.representation import Representation
from pvopt.rules.rounding import Rounding
from pvopt.rules.subspace import Subspace
from pvopt.rules.trust_region import TrustRegion

from .code_steps import CodeStep
from .dense_search import DenseSearch
from .exchange import Exchange, together
from .moves import Moves
from .placement import WHOLE, Placement
from .searches import GroupSearch, Selection

__all__ = ["stackable", "v_step", "v_step_task"]


def v_step(
    rep: Representation,
    targets: Tensor | Sequence[Tensor],
    *,
    rounding: Rounding,
    subspace: Subspace,
    trust_region: TrustRegion | None = None,
    metric: WeightMetric | None = None,
    options: SearchOptions | None = None,
    draws: Draws | torch.Generator | None = None,
    code_step: CodeStep | None = None,
    gradients: Sequence[Tensor] | None = None,
    before_moves: Callable[[Representation, Tensor], None] | None = None,
) -> Tensor:
    r"""Move codes of the selected groups towards a target, the values fixed.

    .. math:: z_g \leftarrow \mathrm{round}_D(t_g) \ \text{for}\ g \in S, \qquad
        S = \mathrm{select}\big(\|t_g - w_g\|\big)

    Groups whose target equals their weight never move, whatever the rules say. The metric decides
    which code is near and what a change is worth; the norms given to subspace rules and the trust
    region are Euclidean.

    Args:
        rep: codes (changed in place) and values, of one weight or of several of one shape.
        targets: ``[*shape]`` for each weight: the latent weight, or the weight after a plain
            optimizer step. A tensor by itself stands for that of one weight. Each matrix of a
            weight (each expert) takes a V step of its own, with its own share of groups and trust
            region.
        rounding: which candidate to take.
        subspace: which groups may move.
        trust_region: bound on the change of each whole weight, or None.
        metric: between the weights, or None for the Euclidean. One that couples the columns of each
            row is searched block column by block column (:func:`pvopt.row_metric_search`). One for
            each matrix of a weight may differ.
        options: how hard a search tries.
        draws: source of random draws.
        code_step: how much longer the steps of the selected groups are.
        gradients: ``[*shape]`` for each weight, where all updates are of one length, as Adam's
            first are: groups that ask for equal changes are ranked by them, as the predicted
            decrease of the loss then is, and not by the rounding of floating-point numbers.
        before_moves: is told which groups may move, by their numbers, before any does.

    Returns:
        Number of groups of each weight whose code changed, ``[weights]`` int64 on its device.

    Raises:
        ValueError: for several weights with a metric, a space of their own or a rule that asks for
            decreases.

    Example:
        >>> import torch
        >>> from pvopt import AllGroups, Nearest, SharedValues, v_step
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> target = torch.tensor([[0.7, 0.9]])
        >>> v_step(rep, target, rounding=Nearest(), subspace=AllGroups())
        tensor([1])
        >>> rep.decode()
        tensor([[1., 1.]])

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3 and algorithm 2.
    """
    task = v_step_task(
        rep,
        targets,
        rounding=rounding,
        subspace=subspace,
        trust_region=trust_region,
        metric=metric,
        options=options,
        draws=draws,
        code_step=code_step,
        gradients=gradients,
        before_moves=before_moves,
    )
    return together([task])[0]


def v_step_task(
    rep: Representation,
    targets: Tensor | Sequence[Tensor],
    *,
    rounding: Rounding,
    subspace: Subspace,
    trust_region: TrustRegion | None = None,
    metric: WeightMetric | None = None,
    options: SearchOptions | None = None,
    draws: Draws | torch.Generator | None = None,
    code_step: CodeStep | None = None,
    gradients: Sequence[Tensor] | None = None,
    before_moves: Callable[[Representation, Tensor], None] | None = None,
    placement: Placement = WHOLE,
) -> Exchange[Tensor]:
    """Take a :func:`v_step` that may ask the processes that hold other rows of the weights.

    Their placement says which rows the representation and the targets are of. The other arguments
    and the result are those of :func:`v_step`.
    """
    targets = [targets] if isinstance(targets, Tensor) else targets
    dense = not stackable(rep, metric=metric, subspace=subspace)
    if dense and rep.count > 1:
        raise ValueError(
            f"rep must be of one weight for a metric, a space or {subspace}, got {rep.count}"
        )
    options = options or SearchOptions()
    step = _Step(rounding, subspace, trust_region, options, before_moves, placement)
    weights, draws = rep.count, Draws.of(draws, rep.device)
    metrics = matrix_metrics(metric, rep.view, rep.shape)
    if gradients is not None:
        gradients = rep.view.all_matrices(gradients)
    targets, rep = rep.view.all_matrices(targets), rep.matrices
    if dense or not rep.together:
        own_steps = code_step.each() if code_step else [None] * rep.count
        own_gradients = [[g] for g in gradients] if gradients else [None] * rep.count
        of_each = zip(rep.members(), targets, metrics, own_steps, own_gradients, strict=True)
        parts = []
        for m, t, own, c, g in of_each:
            parts.append((yield from step.run(m, [t], own, draws, c, g, dense=dense)))
        moved = torch.cat(parts)
    else:
        own_draws = draws.of_matrices(rep.count // weights)
        arguments = rep, targets, None, own_draws, code_step, gradients
        moved = yield from step.run(*arguments, dense=False)
    return moved if len(moved) == weights else moved.view(weights, -1).sum(1)


@dataclass(frozen=True)
class _Step:
    """The rules of a V step.

    Args:
        rounding: which candidate to take.
        subspace: which groups may move.
        trust_region: bound on the change of each matrix, or None.
        options: how hard a search tries.
        before_moves: is told which groups may move, by their numbers, before any does.
        placement: of the weights.
    """

    rounding: Rounding
    subspace: Subspace
    trust_region: TrustRegion | None
    options: SearchOptions
    before_moves: Callable[[Representation, Tensor], None] | None
    placement: Placement

    def run(
        self,
        rep: Representation,
        targets: Sequence[Tensor],
        metric: Metric | None,
        draws: Draws,
        code_step: CodeStep | None,
        gradients: Sequence[Tensor] | None,
        *,
        dense: bool,
    ) -> Exchange[Tensor]:
        """Move codes of matrices; return how many groups of each changed, ``[count]``."""
        rounding, subspace = self.rounding, self.subspace
        settings = {
            "rounding": rounding,
            "options": self.options,
            "draws": draws,
            "code_step": code_step,
        }
        if dense:
            search: GroupSearch = DenseSearch(rep, targets[0], metric, **settings)
        else:
            search = self.placement.search(rep, targets, **settings)
        ordered = self.trust_region is not None
        chosen = yield from search.selection(subspace, ordered=ordered, gradients=gradients)
        groups, asked = chosen.groups, chosen.asked
        if search.coupled and asked is not None:  # others must not be searched for them: they stay
            groups = groups[:, asked[0] > 0]
        if groups.shape[1] == 0:
            return torch.zeros(rep.count, dtype=torch.int64, device=groups.device)
        numbers = rep.numbers(groups)
        if self.before_moves is not None:
            self.before_moves(rep, numbers)
        moves = search.moves(groups, numbers)
        if not (search.coupled or rounding.takes_first or asked is None):
            moves = moves.only((asked > 0).flatten())  # the nearest to a weight is its own
        if chosen.allowed is not None:
            moves = moves.only(chosen.allowed.flatten())
        found = None
        if self.trust_region is not None:
            if code_step is not None and code_step.learns:
                found = yield from search.counts(moves)
            within = _within(self.trust_region, moves, search, replace(chosen, groups=groups))
            groups, moves = yield from within
        made = yield from search.counts(moves)
        if code_step is not None and code_step.learns:
            seen = yield from search.observed(moves, replace(chosen, groups=groups))
            code_step.observe(*seen, made if found is None else found)
        moves.make_(rep)
        return made


def stackable(rep: Representation, *, metric: object | None, subspace: Subspace) -> bool:
    """Tell whether several weights like one can take a V step together."""
    return metric is None and rep.space.trivial and not subspace.needs_decreases


def _within(
    trust_region: TrustRegion, moves: Moves, search: GroupSearch, selection: Selection
) -> Exchange[tuple[Tensor, Moves]]:
    """Return the first moves that fit into the trust region, and their groups."""
    groups = selection.groups
    while True:
        accepted = yield from search.accepted(trust_region, moves, selection)
        if not search.coupled:
            return groups, moves.only(accepted)
        kept = moves.moved & accepted
        if bool((kept == moves.moved).all()):
            return groups, moves
        # The accepted groups were searched for company that stays out: search them again.
        groups = groups[:, kept]
        selection = replace(selection, groups=groups)
        moves = search.moves(groups, groups.flatten())
