"""The methods with a name, each one composition of a P step and a V step."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .exact_v_step import ExactV, FullMetricV, Solver
from .methods import Method
from .p_step import ExactP, PStep
from .rounding import Stochastic
from .subspaces import Greedy, SubspaceRule
from .v_step import KeepCodes, LinearizedV

__all__ = [
    "continuous_only",
    "exact_pv",
    "linearized_pv",
    "metric_pv",
    "penalised_ste",
    "ste",
    "stochastic_rounding",
    "subspace_pv",
    "subspace_pv_ste",
]

_EXACT = ExactP()


def continuous_only(*, p_step: PStep = _EXACT) -> Method:
    """Tune the values, never the codes.

    Example:
        >>> from pvopt.convex.recipes import continuous_only
        >>> continuous_only().v_step
        KeepCodes()
    """
    return Method(p_step=p_step, v_step=KeepCodes())


def exact_pv(*, p_step: PStep = _EXACT, solver: Solver = "auto") -> Method:
    """Alternate exact steps.

    Example:
        >>> from pvopt.convex.recipes import exact_pv
        >>> exact_pv().v_step.solver
        'auto'

    References:
        PV-Tuning (arXiv 2405.14852), the PV algorithm.
    """
    return Method(p_step=p_step, v_step=ExactV(solver))


def linearized_pv(
    inner: int = 1, *, step_size: float | None = None, p_step: PStep = _EXACT
) -> Method:
    """Round the plain gradient step of size 1/L, ``inner`` times per P step.

    Example:
        >>> from pvopt.convex.recipes import linearized_pv
        >>> linearized_pv(inner=4).v_step.inner
        4

    References:
        PV-Tuning (arXiv 2405.14852), the linearized V step.
    """
    return Method(p_step=p_step, v_step=LinearizedV(inner, step_size=step_size))


def subspace_pv(
    subspace: SubspaceRule | None = None, *, inner: int = 1, p_step: PStep = _EXACT
) -> Method:
    """Round a gradient step of size 1/L_S on a few coordinates; greedy by default.

    Example:
        >>> from pvopt.convex.recipes import subspace_pv
        >>> subspace_pv().v_step.subspace
        Greedy(size=1)

    References:
        PV-Tuning (arXiv 2405.14852), the linearized subspace V step.
    """
    return Method(p_step=p_step, v_step=LinearizedV(inner, subspace=subspace or Greedy()))


def metric_pv(metric: NDArray[np.float64], *, inner: int = 1, p_step: PStep = _EXACT) -> Method:
    """Round in a metric D above the Hessian: ``(d,)`` per coordinate, or ``(d, d)`` by search.

    Raises:
        ValueError: for a metric with other axes, or inner iterations in a full metric.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex.recipes import metric_pv
        >>> metric_pv(np.ones(3)).v_step.metric.tolist()
        [1.0, 1.0, 1.0]

    References:
        Iterative OBS (NeurIPS 2024): curvature in the discrete step.
    """
    if np.ndim(metric) == 1:
        return Method(p_step=p_step, v_step=LinearizedV(inner, metric=metric))
    if inner != 1:
        raise ValueError(f"inner must be 1 with a full metric, got {inner}")
    return Method(p_step=p_step, v_step=FullMetricV(metric))


def ste(*, step_size: float | None = None, p_step: PStep = _EXACT) -> Method:
    """Straight-through: the gradient at the rounded weights moves a buffer that is never reset.

    Example:
        >>> from pvopt.convex.recipes import ste
        >>> ste().v_step.latent_decay
        0.0

    References:
        PV-Tuning (arXiv 2405.14852), the discussion of straight-through estimation.
    """
    return penalised_ste(0.0, step_size=step_size, p_step=p_step)


def penalised_ste(
    latent_decay: float = 0.1, *, step_size: float | None = None, p_step: PStep = _EXACT
) -> Method:
    """Straight-through with a buffer that is pulled towards the rounded weights.

    Example:
        >>> from pvopt.convex.recipes import penalised_ste
        >>> penalised_ste(0.5).v_step.latent_decay
        0.5

    References:
        PV-Tuning (arXiv 2405.14852), baselines.
    """
    return Method(p_step=p_step, v_step=LinearizedV(step_size=step_size, latent_decay=latent_decay))


def stochastic_rounding(
    rule: Literal["power", "linear"] = "power",
    temperature: float = 1.0,
    *,
    step_size: float | None = None,
    p_step: PStep = _EXACT,
) -> Method:
    """Round the gradient step at random between two values.

    Example:
        >>> from pvopt.convex.recipes import stochastic_rounding
        >>> stochastic_rounding("linear").v_step.deterministic
        False

    References:
        PV-Tuning (arXiv 2405.14852), baselines.
    """
    rounding = Stochastic(rule, temperature)
    return Method(p_step=p_step, v_step=LinearizedV(rounding=rounding, step_size=step_size))


def subspace_pv_ste(
    subspace: SubspaceRule | None = None,
    *,
    latent_decay: float = 0.0,
    step_size: float | None = None,
    p_step: PStep = _EXACT,
) -> Method:
    """Round a straight-through buffer on the few coordinates that are farthest from it.

    Example:
        >>> from pvopt.convex.recipes import subspace_pv_ste
        >>> subspace_pv_ste().v_step.subspace
        Greedy(size=1)

    References:
        PV-Tuning (arXiv 2405.14852), implementation details: PV with a buffer.
    """
    v_step = LinearizedV(
        subspace=subspace or Greedy(), step_size=step_size, latent_decay=latent_decay
    )
    return Method(p_step=p_step, v_step=v_step)
