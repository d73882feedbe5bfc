"""Starts for codes and values: from the weight alone, or calibrated by the layer's inputs."""

from .aqlm import AQLM
from .contract import STARTS, Start, parse_start, usual_start
from .fit import Fit
from .gptq import GPTQ
from .iterative_obs import IterativeOBS
from .lnq import LNQ
from .obs import OneShotOBS
from .refit import refit_support

__all__ = [
    "AQLM",
    "GPTQ",
    "LNQ",
    "STARTS",
    "Fit",
    "IterativeOBS",
    "OneShotOBS",
    "Start",
    "parse_start",
    "refit_support",
    "usual_start",
]
