"""Quantize a language model with a text at hand: one pass over its blocks, resumable."""

from .fine_tuning import FineTuning
from .methods import METHODS, default_method, parse_method
from .walk import Calibration, calibrate_

__all__ = [
    "METHODS",
    "Calibration",
    "FineTuning",
    "calibrate_",
    "default_method",
    "parse_method",
]
