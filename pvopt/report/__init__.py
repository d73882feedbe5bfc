"""Runs and checkpoints on one HTML page: curves, maps of the layers, settings, side by side.

The page needs no network. Charts are drawn by Vega (packages ``altair`` and ``vl-convert-python``).
"""

from .page import write_report
from .runs import ReportedRun, read_runs
from .samples import Sample

__all__ = ["ReportedRun", "Sample", "read_runs", "write_report"]
