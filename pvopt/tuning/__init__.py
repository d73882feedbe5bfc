"""Tuning of language models from the command line: settings, the loop, metrics, curves."""

from .formats import FORMATS, format_name, parse_format
from .records import MetricsFile, StepRecord
from .optimizers import build_optimizer
from .plots import plot_curves
from .runs import Inputs, find_checkpoint, load_student, resume_run, start_run
from .settings import TuneSettings, autocast_dtype, computing_dtype
from .signals import StopRequest
from .trainer import Trainer

__all__ = [
    "FORMATS",
    "Inputs",
    "MetricsFile",
    "StepRecord",
    "StopRequest",
    "Trainer",
    "TuneSettings",
    "autocast_dtype",
    "build_optimizer",
    "computing_dtype",
    "find_checkpoint",
    "format_name",
    "load_student",
    "parse_format",
    "plot_curves",
    "resume_run",
    "start_run",
]
