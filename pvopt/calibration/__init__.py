"""Quantize a language model with a text at hand: one pass over its blocks, resumable."""

from .fine_tuning import FineTuning
from .sequences import Sequences, sequences_of
from .walk import Calibration, calibrate_

__all__ = ["Calibration", "FineTuning", "Sequences", "calibrate_", "sequences_of"]
