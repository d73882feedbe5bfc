"""The V step on one weight: select groups, search, round, stay in the trust region."""

from __future__ import annotations

import torch
from torch import Tensor

from .parametrizations.layout import GroupLayout
from .parametrizations.representation import Representation
from .rounding import Rounding
from .subspace import Subspace, TrustRegion

__all__ = ["group_norms", "v_step"]


def group_norms(layout: GroupLayout, difference: Tensor) -> Tensor:
    """Return the Euclidean norm of each group of a dense difference.

    Args:
        layout: how the weight is cut.
        difference: ``[*shape]``.

    Returns:
        ``[num_groups]``.

    Example:
        >>> group_norms(GroupLayout((1, 4), 1, 2), torch.tensor([[3.0, 4.0, 0.0, 0.0]]))
        tensor([5., 0.])
    """
    return torch.linalg.vector_norm(layout.split(difference), dim=1)


def v_step(
    rep: Representation,
    target: Tensor,
    weight: Tensor,
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
        weight: ``[*shape]`` contiguous, ``rep.decode()``; changed in place along with the codes.
        rounding: which candidate to take.
        subspace: which groups may move.
        trust_region: bound on the change of the whole weight, or None.
        generator: source of random draws.

    Returns:
        Number of groups whose code changed.

    Example:
        >>> from pvopt import AllGroups, Nearest, SharedValues
        >>> rep = SharedValues(2).fit(torch.tensor([[0.0, 1.0]]))
        >>> weight = rep.decode()
        >>> target = torch.tensor([[0.7, 0.9]])
        >>> v_step(rep, target, weight, rounding=Nearest(), subspace=AllGroups())
        1
        >>> weight
        tensor([[1., 1.]])

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3 and algorithm 2.
    """
    layout = rep.layout
    magnitudes = group_norms(layout, target.to(weight.dtype) - weight)
    ordered = trust_region is not None
    groups = subspace.select(magnitudes, generator, ordered=ordered)
    groups = groups[magnitudes[groups] > 0]
    if len(groups) == 0:
        return 0
    goal = layout.take(target, groups)  # [n, group_size]
    candidates = rounding.propose(goal, rep, groups, generator=generator)
    current = rep.flat_codes[groups].long()  # [n, codes_per_group]
    codes = rounding.choose(candidates, current, generator)
    moved = (codes != current).any(1).nonzero()[:, 0]
    groups, codes = groups[moved], codes[moved]
    if len(groups) == 0:
        return 0
    decoded = rep.parametrization.decode_groups(rep, groups, codes)
    if trust_region is not None:
        changes = (decoded - layout.take(weight, groups)).square().sum(1)
        accepted = trust_region.accept(changes, weight.square().sum())
        groups, codes, decoded = groups[:accepted], codes[:accepted], decoded[:accepted]
    rep.flat_codes[groups] = codes.to(rep.codes.dtype)
    layout.write(weight, groups, decoded)
    return len(groups)
