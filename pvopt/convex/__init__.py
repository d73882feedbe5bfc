"""The theory of PV-Tuning, runnable: NumPy in float64, without torch.

Weights with at most c distinct entries are a :class:`Point`: codes (the partition) and values. A P
step moves the values, a V step the codes, and a :class:`Method` alternates the two; every array may
have leading axes for independent runs.
"""

from __future__ import annotations

from . import recipes
from .branch_and_bound import CertifiedCodes, QuadraticModel, branch_and_bound
from .diagonal_metric import diagonal_metric
from .exact_v_step import ExactV, FullMetricV, all_codes
from .exploration import Exploration
from .generators import random_least_squares, random_logistic, random_quadratic, random_start
from .logistic import Logistic
from .methods import Method
from .p_step import ExactP, GradientP, KeepValues, PStep
from .partitions import GlobalOptimum, contains, global_optimum, set_partitions
from .points import Point
from .problems import LeastSquares, Problem, Quadratic
from .rounding import Nearest, Rounding, Stochastic
from .smoothness import restricted_smoothness, smoothness
from .subspaces import (
    AllCoordinates,
    Gain,
    Greedy,
    Proportional,
    Proposal,
    SubspaceRule,
    Uniform,
)
from .trajectory import Trajectory, concatenate
from .v_step import KeepCodes, LinearizedV, VOutcome, VStep

__all__ = [
    "AllCoordinates",
    "CertifiedCodes",
    "ExactP",
    "ExactV",
    "Exploration",
    "FullMetricV",
    "Gain",
    "GlobalOptimum",
    "GradientP",
    "Greedy",
    "KeepCodes",
    "KeepValues",
    "LeastSquares",
    "LinearizedV",
    "Logistic",
    "Method",
    "Nearest",
    "PStep",
    "Point",
    "Problem",
    "Proportional",
    "Proposal",
    "Quadratic",
    "QuadraticModel",
    "Rounding",
    "Stochastic",
    "SubspaceRule",
    "Trajectory",
    "Uniform",
    "VOutcome",
    "VStep",
    "all_codes",
    "branch_and_bound",
    "concatenate",
    "contains",
    "diagonal_metric",
    "global_optimum",
    "random_least_squares",
    "random_logistic",
    "random_quadratic",
    "random_start",
    "recipes",
    "restricted_smoothness",
    "set_partitions",
    "smoothness",
]
