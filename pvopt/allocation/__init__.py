"""Formats layer by layer under a budget of bits, by what each costs the model's predictions."""

from .budget import Option, allocate
from .candidates import candidates_near
from .mixed import MixedFormats, mix_formats_
from .sensitivities import Predictions, Sensitivities

__all__ = [
    "MixedFormats",
    "Option",
    "Predictions",
    "Sensitivities",
    "allocate",
    "candidates_near",
    "mix_formats_",
]
