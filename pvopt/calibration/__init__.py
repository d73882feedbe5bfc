"""Quantize a language model with a text at hand: one pass over its blocks, resumable."""

from .asymmetric import AsymmetricCalibration
from .blocks import outside_blocks
from .end_loss import EndLoss
from .fine_tuning import FineTuning
from .sequences import Sequences, sequences_of
from .walk import Calibration, calibrate_

__all__ = [
    "AsymmetricCalibration",
    "Calibration",
    "EndLoss",
    "FineTuning",
    "Sequences",
    "calibrate_",
    "outside_blocks",
    "sequences_of",
]
