"""Optimizers for models whose weights are discrete: codes, codebooks, grids.

The flow: :func:`quantize_` makes representations (codes and values) of a model's weights,
:class:`PVOptimizer` tunes them in any training loop, :mod:`pvopt.formats.native` saves them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.finite_check import NonFiniteGradientError
    from .metrics.sources import InputMetric, Metric, SecondMoment
    from .optimizer import PVOptimizer
    from .parametrizations import (
        E8P,
        AdditiveCodebooks,
        Binary,
        BlockMetric,
        Candidates,
        GroupLayout,
        Incoherent,
        Parametrization,
        QuantizedNonzeros,
        QuantizedScales,
        Representation,
        SharedValues,
        Sparse,
        SparseNM,
        Ternary,
        UniformGrid,
        VectorCodebook,
    )
    from .weights import QuantizedWeights, quantize_
    from .recipes import (
        continuous_only,
        naive_pv,
        ste,
        stochastic_rounding,
        subspace_pv,
        subspace_pv_ste,
    )
    from .rules.rounding import Forced, Nearest, Rounding, Stochastic
    from .engine.column_descent import RowMetric, row_metric_search
    from .rules.phases import Alternate, Phases, Schedule, Simultaneous
    from .engine.report import StepReport
    from .rules.subspace import AllGroups, Decreases, Gain, Greedy, Proportional, Subspace, Uniform
    from .rules.trust_region import TrustRegion
    from .rules.value_optimizers import AdamValues, SGDValues, ValueOptimizer
    from .engine.v_step import v_step

__version__ = "0.1.0"

__all__ = [
    "E8P",
    "AdamValues",
    "AdditiveCodebooks",
    "AllGroups",
    "Alternate",
    "Binary",
    "BlockMetric",
    "Candidates",
    "Decreases",
    "Forced",
    "Gain",
    "Greedy",
    "GroupLayout",
    "Incoherent",
    "InputMetric",
    "Metric",
    "Nearest",
    "NonFiniteGradientError",
    "PVOptimizer",
    "Parametrization",
    "Phases",
    "Proportional",
    "QuantizedNonzeros",
    "QuantizedScales",
    "QuantizedWeights",
    "Representation",
    "Rounding",
    "RowMetric",
    "SGDValues",
    "Schedule",
    "SecondMoment",
    "SharedValues",
    "Simultaneous",
    "Sparse",
    "SparseNM",
    "StepReport",
    "Stochastic",
    "Subspace",
    "Ternary",
    "TrustRegion",
    "Uniform",
    "UniformGrid",
    "ValueOptimizer",
    "VectorCodebook",
    "continuous_only",
    "naive_pv",
    "quantize_",
    "row_metric_search",
    "ste",
    "stochastic_rounding",
    "subspace_pv",
    "subspace_pv_ste",
    "v_step",
]

# Names are looked up here when they are first used: pvopt.convex must import without torch.
_MODULES = (
    "gradients",
    "metric",
    "optimizer",
    "parametrizations",
    "quantize",
    "recipes",
    "rounding",
    "row_metric",
    "schedule",
    "step_report",
    "subspace",
    "trust_region",
    "values",
    "vstep",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in __all__:
        for module in _MODULES:
            found = import_module(f".{module}", __name__)
            if name in found.__all__:
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
