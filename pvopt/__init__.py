"""Optimizers for models whose weights are discrete: codes, codebooks, grids.

The flow: :func:`quantize_` makes representations (codes and values) of a model's weights,
:class:`PVOptimizer` tunes them in any training loop, :mod:`pvopt.checkpoints` saves them.
"""

from .gradients import NonFiniteGradientError
from .optimizer import PVOptimizer
from .parametrizations import (
    AdditiveCodebooks,
    Candidates,
    GroupLayout,
    Parametrization,
    Representation,
    SharedValues,
    UniformGrid,
    VectorCodebook,
)
from .quantize import QuantizedWeights, quantize_
from .recipes import (
    continuous_only,
    naive_pv,
    ste,
    stochastic_rounding,
    subspace_pv,
    subspace_pv_ste,
)
from .rounding import Forced, Nearest, Rounding, Stochastic
from .schedule import Alternate, Phases, Schedule, Simultaneous
from .step_report import StepReport
from .subspace import AllGroups, Greedy, Proportional, Subspace, TrustRegion, Uniform
from .values import AdamValues, SGDValues, ValueOptimizer
from .vstep import v_step

__version__ = "0.1.0"

__all__ = [
    "AdamValues",
    "AdditiveCodebooks",
    "AllGroups",
    "Alternate",
    "Candidates",
    "Forced",
    "Greedy",
    "GroupLayout",
    "Nearest",
    "NonFiniteGradientError",
    "PVOptimizer",
    "Parametrization",
    "Phases",
    "Proportional",
    "QuantizedWeights",
    "Representation",
    "Rounding",
    "SGDValues",
    "Schedule",
    "SharedValues",
    "Simultaneous",
    "StepReport",
    "Stochastic",
    "Subspace",
    "TrustRegion",
    "Uniform",
    "UniformGrid",
    "ValueOptimizer",
    "VectorCodebook",
    "continuous_only",
    "naive_pv",
    "quantize_",
    "ste",
    "stochastic_rounding",
    "subspace_pv",
    "subspace_pv_ste",
    "v_step",
]
