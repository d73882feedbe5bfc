from .core.draws import (
    Draws as Draws,
)
from .core.layout import (
    GroupLayout as GroupLayout,
)
from .core.streams import (
    CodeStream as CodeStream,
)
from .core.views import (
    MatrixView as MatrixView,
)
from .engine.agreement import (
    WeightsChangedError as WeightsChangedError,
)
from .engine.column_search import (
    row_metric_search as row_metric_search,
)
from .engine.exchange import (
    ProcessesError as ProcessesError,
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
from .metrics import (
    Block as Block,
)
from .metrics import (
    Diagonal as Diagonal,
)
from .metrics import (
    Metric as Metric,
)
from .metrics import (
    Row as Row,
)
from .optimizer import (
    PVOptimizer as PVOptimizer,
)
from .parametrizations import (
    E8P as E8P,
)
from .parametrizations import (
    PARAMETRIZATIONS as PARAMETRIZATIONS,
)
from .parametrizations import (
    AdditiveCodebooks as AdditiveCodebooks,
)
from .parametrizations import (
    AffineGrid as AffineGrid,
)
from .parametrizations import (
    Binary as Binary,
)
from .parametrizations import (
    Candidates as Candidates,
)
from .parametrizations import (
    FitOptions as FitOptions,
)
from .parametrizations import (
    NestedGrid as NestedGrid,
)
from .parametrizations import (
    Parametrization as Parametrization,
)
from .parametrizations import (
    QuantizedNonzeros as QuantizedNonzeros,
)
from .parametrizations import (
    QuantizedScales as QuantizedScales,
)
from .parametrizations import (
    Query as Query,
)
from .parametrizations import (
    Representation as Representation,
)
from .parametrizations import (
    Scheme as Scheme,
)
from .parametrizations import (
    SearchOptions as SearchOptions,
)
from .parametrizations import (
    SharedValues as SharedValues,
)
from .parametrizations import (
    Sparse as Sparse,
)
from .parametrizations import (
    SparseNM as SparseNM,
)
from .parametrizations import (
    Storage as Storage,
)
from .parametrizations import (
    Ternary as Ternary,
)
from .parametrizations import (
    Trellis as Trellis,
)
from .parametrizations import (
    UniformGrid as UniformGrid,
)
from .parametrizations import (
    VectorCodebook as VectorCodebook,
)
from .parametrizations import (
    parse_scheme as parse_scheme,
)
from .quantization import (
    quantize_ as quantize_,
)
from .recipes import (
    continuous_only as continuous_only,
)
from .recipes import (
    naive_pv as naive_pv,
)
from .recipes import (
    ste as ste,
)
from .recipes import (
    stochastic_rounding as stochastic_rounding,
)
from .recipes import (
    subspace_pv as subspace_pv,
)
from .recipes import (
    subspace_pv_ste as subspace_pv_ste,
)
from .rules.metric_sources import (
    InputMetric as InputMetric,
)
from .rules.metric_sources import (
    MetricSource as MetricSource,
)
from .rules.metric_sources import (
    SecondMoment as SecondMoment,
)
from .rules.phases import (
    Alternate as Alternate,
)
from .rules.phases import (
    HalfSteps as HalfSteps,
)
from .rules.phases import (
    Phases as Phases,
)
from .rules.phases import (
    Simultaneous as Simultaneous,
)
from .rules.rounding import (
    Forced as Forced,
)
from .rules.rounding import (
    Nearest as Nearest,
)
from .rules.rounding import (
    Rounding as Rounding,
)
from .rules.rounding import (
    Stochastic as Stochastic,
)
from .rules.subspace import (
    AllGroups as AllGroups,
)
from .rules.subspace import (
    Decreases as Decreases,
)
from .rules.subspace import (
    Gain as Gain,
)
from .rules.subspace import (
    Greedy as Greedy,
)
from .rules.subspace import (
    Proportional as Proportional,
)
from .rules.subspace import (
    Subspace as Subspace,
)
from .rules.subspace import (
    Uniform as Uniform,
)
from .rules.trust_region import (
    TrustRegion as TrustRegion,
)
from .rules.value_optimizers import (
    AdamValues as AdamValues,
)
from .rules.value_optimizers import (
    SGDValues as SGDValues,
)
from .rules.value_optimizers import (
    ValueOptimizer as ValueOptimizer,
)
from .selection.coverage import (
    Coverage as Coverage,
)
from .selection.coverage import (
    DenseWeight as DenseWeight,
)
from .spaces import (
    Chain as Chain,
)
from .spaces import (
    Identity as Identity,
)
from .spaces import (
    Padding as Padding,
)
from .spaces import (
    Permutation as Permutation,
)
from .spaces import (
    Rotation as Rotation,
)
from .spaces import (
    Scaling as Scaling,
)
from .spaces import (
    Space as Space,
)
from .spaces import (
    ZeroRow as ZeroRow,
)
from .weights import (
    QuantizedWeights as QuantizedWeights,
)

__version__: str
