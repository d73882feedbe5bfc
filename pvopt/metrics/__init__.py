"""Metrics between weights: in which distance a code is near to its target."""

from .block import Block
from .contract import GroupCosts, GroupMetric, Metric
from .diagonal import Diagonal
from .row import Row

__all__ = ["Block", "Diagonal", "GroupCosts", "GroupMetric", "Metric", "Row"]
