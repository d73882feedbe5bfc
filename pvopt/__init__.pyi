from .core.layout import (
    GroupLayout as GroupLayout,
)
from .core.streams import (
    CodeStream as CodeStream,
)
from .core.draws import (
    Draws as Draws,
)
from .engine.finite_check import (
    NonFiniteGradientError as NonFiniteGradientError,
)
from .engine.report import (
    StepReport as StepReport,
)
from .engine.v_step import (
    v_step as v_step,
)
from .engine.column_search import (
    row_metric_search as row_metric_search,
)
from .metrics import (
    Block as Block,
    Diagonal as Diagonal,
    Metric as Metric,
    Row as Row,
)
from .optimizer import (
    PVOptimizer as PVOptimizer,
)
from .parametrizations import (
    PARAMETRIZATIONS as PARAMETRIZATIONS,
    E8P as E8P,
    AdditiveCodebooks as AdditiveCodebooks,
    Binary as Binary,
    Candidates as Candidates,
    FitOptions as FitOptions,
    Parametrization as Parametrization,
    QuantizedNonzeros as QuantizedNonzeros,
    QuantizedScales as QuantizedScales,
    Query as Query,
    Representation as Representation,
    Scheme as Scheme,
    SearchOptions as SearchOptions,
    SharedValues as SharedValues,
    Sparse as Sparse,
    SparseNM as SparseNM,
    Storage as Storage,
    Ternary as Ternary,
    UniformGrid as UniformGrid,
    VectorCodebook as VectorCodebook,
    parse_scheme as parse_scheme,
)
from .recipes import (
    continuous_only as continuous_only,
    naive_pv as naive_pv,
    ste as ste,
    stochastic_rounding as stochastic_rounding,
    subspace_pv as subspace_pv,
    subspace_pv_ste as subspace_pv_ste,
)
from .rules.metric_sources import (
    InputMetric as InputMetric,
    MetricSource as MetricSource,
    SecondMoment as SecondMoment,
)
from .rules.phases import (
    Alternate as Alternate,
    HalfSteps as HalfSteps,
    Phases as Phases,
    Simultaneous as Simultaneous,
)
from .rules.rounding import (
    Forced as Forced,
    Nearest as Nearest,
    Rounding as Rounding,
    Stochastic as Stochastic,
)
from .rules.subspace import (
    AllGroups as AllGroups,
    Decreases as Decreases,
    Gain as Gain,
    Greedy as Greedy,
    Proportional as Proportional,
    Subspace as Subspace,
    Uniform as Uniform,
)
from .rules.trust_region import (
    TrustRegion as TrustRegion,
)
from .rules.value_optimizers import (
    AdamValues as AdamValues,
    SGDValues as SGDValues,
    ValueOptimizer as ValueOptimizer,
)
from .spaces import (
    Chain as Chain,
    Identity as Identity,
    Padding as Padding,
    Permutation as Permutation,
    Rotation as Rotation,
    Scaling as Scaling,
    Space as Space,
)
from .weights import (
    QuantizedWeights as QuantizedWeights,
    quantize_ as quantize_,
)

__version__: str
