"""Smoothness constants of any loss along coordinate subspaces, and the learning rates they suggest.

The subspace linearized V step rounds ``y - g / L_S``, where ``L_S`` is the smoothness constant of
the loss along the coordinates S that may move. It falls steeply as S shrinks, which is why a few
codes can take steps that all codes together cannot.
"""

from __future__ import annotations

from .code_lr import CodeLearningRate, suggest_code_lr
from .estimate import SmoothnessEstimate, estimate_smoothness
from .settings import SmoothnessSettings

__all__ = [
    "CodeLearningRate",
    "SmoothnessEstimate",
    "SmoothnessSettings",
    "estimate_smoothness",
    "suggest_code_lr",
]
