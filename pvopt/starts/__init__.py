"""Starts for codes and values: from the weight alone, or calibrated by the layer's inputs."""

from pvopt.fits.kmeans import kmeans, nearest_centroid

from .aqlm import AQLM
from .contract import Initialization
from .fit import Fit
from .gptq import GPTQ
from .hessian import damped, dead_inputs, layer_error, relative_layer_error
from .obs import IterativeOBS, OneShotOBS
from .refit import refit_support

__all__ = [
    "AQLM",
    "GPTQ",
    "Fit",
    "Initialization",
    "IterativeOBS",
    "OneShotOBS",
    "damped",
    "dead_inputs",
    "kmeans",
    "layer_error",
    "nearest_centroid",
    "refit_support",
    "relative_layer_error",
]
