"""The V step on one weight: select groups, search, round, stay in the trust region."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.ops import group_sq_norms

from .parametrizations.representation import Representation
from .rounding import Rounding
from .subspace import Subspace, TrustRegion

__all__ = ["v_step"]


def v_step(
    rep: Representation,
    target: Tensor,
    decoded: Tensor,
    *,
    rounding: Rounding,
    subspace: Subspace,
    trust_region: TrustRegion | None = None,
    generator: torch.Generator | None = None,
) -> int:
    r"""Move codes of the selected groups towards a target, the values fixed.

    .. math:: z_g \leftarrow \mathrm{round}(t_g) \ \text{for}\ g \in S, \qquad
        S = \mathrm{select}\big(\|t_g - w_g\|\big)

    Groups whose target equals their weight never move, whatever the rules say.

    Args:
        rep: codes (changed in place) and values.
        target: ``[*shape]`` the latent weight, or the weight after a plain optimizer step.
        decoded: ``[num_groups, group_size]``, ``rep.parametrization.decode_groups(rep)``; changed
            in place along with the codes.
        rounding: which candidate to take.
        subspace: which groups may move.
        trust_region: bound on the change of the whole weight, or None.
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
    groups = subspace.select(magnitudes, generator, ordered=trust_region is not None)
    groups = groups[magnitudes[groups] > 0]
    if len(groups) == 0:
        return 0
    goal = goals.index_select(0, groups)  # [n, g]
    candidates = rounding.propose(goal, rep, groups, generator=generator)
    current = rep.flat_codes[groups].long()  # [n, codes_per_group]
    codes = rounding.choose(candidates, current, generator)
    moved = (codes != current).any(1).nonzero()[:, 0]
    groups, goal, codes = groups[moved], goal[moved], codes[moved]
    if len(groups) == 0:
        return 0
    new = parametrization.decode_moved(goal, rep, groups, codes)
    if trust_region is not None:
        changes = (new - decoded.index_select(0, groups)).square().sum(1)
        accepted = trust_region.accept(changes, decoded.square().sum())
        groups, goal, codes, new = (x[:accepted] for x in (groups, goal, codes, new))
    parametrization.move_(goal, rep, groups, codes)
    decoded[groups] = new
    return len(groups)
