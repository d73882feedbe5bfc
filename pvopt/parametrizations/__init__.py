"""Discrete-continuous parametrizations of a weight, one file each."""

from .additive_codebooks import AdditiveCodebooks
from .contract import Parametrization
from .binary import Binary
from pvopt.metrics.block import BlockMetric
from .candidates import Candidates
from .e8p import E8P
from pvopt.spaces.rotation import Incoherent
from .layout import GroupLayout
from .quantized_nonzeros import QuantizedNonzeros
from .quantized_scales import QuantizedScales
from .representation import Representation
from .shared_values import SharedValues
from .sparse import Sparse, SparseNM
from .ternary import Ternary
from .uniform_grid import UniformGrid
from .vector_codebook import VectorCodebook

__all__ = [
    "E8P",
    "AdditiveCodebooks",
    "Binary",
    "BlockMetric",
    "Candidates",
    "GroupLayout",
    "Incoherent",
    "Parametrization",
    "QuantizedNonzeros",
    "QuantizedScales",
    "Representation",
    "SharedValues",
    "Sparse",
    "SparseNM",
    "Ternary",
    "UniformGrid",
    "VectorCodebook",
]
