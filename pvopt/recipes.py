"""The methods of the field, each one composition of the same parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .optimizer import PVOptimizer
from .parametrizations.representation import Representation
from .rules.rounding import Nearest, Stochastic
from .rules.subspace import AllGroups, Greedy
from .weights import QuantizedWeights

__all__ = [
    "continuous_only",
    "naive_pv",
    "ste",
    "stochastic_rounding",
    "subspace_pv",
    "subspace_pv_ste",
]

Representations = QuantizedWeights | Mapping[nn.Parameter, Representation]


def continuous_only(base: Optimizer, weights: Representations, **options: Any) -> PVOptimizer:
    """Tune the values alone: every V step is left out.

    Args:
        base: optimizer over the dense parameters; it keeps no state for quantized ones.
        weights: the representations.
        options: further arguments of :class:`PVOptimizer`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import UniformGrid, continuous_only, quantize_
        >>> model = nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> continuous_only(torch.optim.SGD(model.parameters(), lr=0.1), weights).report
        StepReport(changed={}, groups={})
    """
    settings: dict[str, Any] = {"latent_decay": 1.0} | options
    optimizer = PVOptimizer(base, weights, **settings)
    for group in optimizer.param_groups:
        group["freeze_codes"] = True
    frozen = replace(optimizer._default_settings, freeze_codes=True)
    optimizer._default_settings = frozen  # for groups that are added later
    return optimizer


def ste(base: Optimizer, weights: Representations, **options: Any) -> PVOptimizer:
    r"""Straight-through estimation: a latent weight collects all updates, all groups are rounded.

    .. math:: b \leftarrow b + u, \qquad z = \mathrm{nearest}(b)

    Args:
        base: optimizer over the dense parameters.
        weights: the representations.
        options: further arguments of :class:`PVOptimizer`; ``latent_decay`` between 0 and 1 makes
            it penalised straight-through estimation.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import UniformGrid, quantize_, ste
        >>> model = nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> base = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> optimizer = ste(base, weights)
        >>> optimizer.subspace, optimizer.param_groups[0]["latent_decay"]
        (AllGroups(), 0.0)

    References:
        Bengio et al., "Estimating or Propagating Gradients" (arXiv 1308.3432).
    """
    return PVOptimizer(base, weights, **{"subspace": AllGroups(), "latent_decay": 0.0} | options)


def stochastic_rounding(base: Optimizer, weights: Representations, **options: Any) -> PVOptimizer:
    """Round the updated weight at random to one of two codes, without a latent weight.

    The two codes lie before and behind the target along the update, so that the codes follow the
    update on average (:class:`Stochastic`).

    Args:
        base: optimizer over the dense parameters.
        weights: the representations.
        options: further arguments of :class:`PVOptimizer`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import UniformGrid, quantize_, stochastic_rounding
        >>> model = nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> base = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> optimizer = stochastic_rounding(base, weights)
        >>> optimizer.rounding.rule, optimizer.param_groups[0]["latent_decay"]
        ('linear', 1.0)

    References:
        Gupta et al., "Deep Learning with Limited Numerical Precision" (arXiv 1502.02551).
    """
    defaults = {"rounding": Stochastic(), "subspace": AllGroups(), "latent_decay": 1.0}
    return PVOptimizer(base, weights, **defaults | options)


def naive_pv(base: Optimizer, weights: Representations, **options: Any) -> PVOptimizer:
    """Linearized PV on the full space: round ``w + u`` to the nearest codes, keep no latent.

    The method that stalls: its steps have to suit all weights at once and seldom reach another
    code, so that it tunes little more than the values. For comparison.

    Args:
        base: optimizer over the dense parameters.
        weights: the representations.
        options: further arguments of :class:`PVOptimizer`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import UniformGrid, naive_pv, quantize_
        >>> model = nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> base = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> optimizer = naive_pv(base, weights)
        >>> optimizer.subspace, optimizer.param_groups[0]["latent_decay"]
        (AllGroups(), 1.0)

    References:
        PV-Tuning (arXiv 2405.14852), section 3.2: steps too short to change a code are lost.
    """
    defaults = {"rounding": Nearest(), "subspace": AllGroups(), "latent_decay": 1.0}
    return PVOptimizer(base, weights, **defaults | options)


def subspace_pv(base: Optimizer, weights: Representations, **options: Any) -> PVOptimizer:
    r"""Linearized PV on the groups of largest update, within a trust region, without a latent.

    .. math:: z_g \leftarrow \mathrm{nearest}\big((w + s\,u)_g\big), \qquad
        g \in \mathrm{top}_\tau \|u_g\|

    On few groups a step may be as long as :math:`1 / L_S`, far longer than on all weights:
    :math:`s` is measured (``code_lr_ratio=None``), so that codes move at the learning rate that
    suits the dense weights.

    Args:
        base: optimizer over the dense parameters.
        weights: the representations.
        options: further arguments of :class:`PVOptimizer`; ``code_lr_ratio=s`` sets the length.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import Greedy, UniformGrid, quantize_, subspace_pv
        >>> model = nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> base = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> optimizer = subspace_pv(base, weights, subspace=Greedy(0.1))
        >>> group = optimizer.param_groups[0]
        >>> group["fraction"], group["trust_ratio"]
        (0.1, 0.01)

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3 and algorithm 2.
    """
    defaults = {"subspace": Greedy(0.01), "trust_ratio": 0.01, "latent_decay": 1.0}
    return PVOptimizer(base, weights, **defaults | options)


def subspace_pv_ste(base: Optimizer, weights: Representations, **options: Any) -> PVOptimizer:
    """Subspace PV towards a latent weight that collects all updates: best on language models.

    Args:
        base: optimizer over the dense parameters.
        weights: the representations.
        options: further arguments of :class:`PVOptimizer`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import UniformGrid, quantize_, subspace_pv_ste
        >>> model = nn.Linear(8, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> base = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> optimizer = subspace_pv_ste(base, weights)
        >>> group = optimizer.param_groups[0]
        >>> group["fraction"], group["latent_decay"]
        (0.01, 0.0)

    References:
        PV-Tuning (arXiv 2405.14852), section 4.3 (PV combined with straight-through estimation).
    """
    defaults = {"subspace": Greedy(0.01), "trust_ratio": 0.01, "latent_decay": 0.0}
    return PVOptimizer(base, weights, **defaults | options)
