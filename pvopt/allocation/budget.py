"""The choice of one option for each of several groups under a budget, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

__all__ = ["Option", "allocate"]


@dataclass(frozen=True)
class Option:
    """What a group may be stored as.

    Args:
        bits: that it takes in all.
        loss: what it costs, such as a divergence in nats.
    """

    bits: float
    loss: float


def allocate(groups: Sequence[Sequence[Option]], budget: float) -> list[int]:
    r"""Choose an option for each group so that the sum of losses is least.

    .. math::
        \min_{o} \sum_g \mathrm{loss}(g, o_g) \quad \text{with} \quad
        \sum_g \mathrm{bits}(g, o_g) \le B

    An integer program, solved to optimality by branch and bound (HiGHS).

    Args:
        groups: the options of each group, at least one.
        budget: ``B``, the most bits in all.

    Returns:
        The number of the option of each group.

    Raises:
        ValueError: if the smallest options together exceed the budget, a number is not finite, or
            a group has no option.

    Example:
        >>> from pvopt.allocation import Option, allocate
        >>> layers = [[Option(200, 1.0), Option(300, 0.1)], [Option(200, 0.5), Option(300, 0.3)]]
        >>> allocate(layers, 500), allocate(layers, 400)
        ([1, 0], [0, 0])
    """
    if not all(groups):
        raise ValueError("every group must have an option")
    if not groups:
        return []
    bits = np.array([option.bits for options in groups for option in options])
    losses = np.array([option.loss for options in groups for option in options])
    if not (np.isfinite(bits).all() and np.isfinite(losses).all()):
        raise ValueError("bits and losses must be finite")
    least = sum(min(option.bits for option in options) for options in groups)
    if not least <= budget < math.inf:
        raise ValueError(f"budget must be at least {least:g}, the smallest options, got {budget:g}")
    sizes = [len(options) for options in groups]
    owners = np.repeat(np.arange(len(groups)), sizes)
    one_each = csr_array((np.ones(len(bits)), (owners, np.arange(len(bits)))))
    scale = max(float(np.abs(losses).max()), np.finfo(float).tiny)
    found = milp(
        losses / scale,
        integrality=np.ones(len(bits)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(bits[None] / budget, ub=1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise ValueError(f"no allocation was found: {found.message}")
    ends = np.cumsum(sizes)
    return [int(part.argmax()) for part in np.split(found.x, ends[:-1])]
