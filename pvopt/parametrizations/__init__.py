"""Discrete-continuous parametrizations of a weight, one file each."""

from .additive_codebooks import AdditiveCodebooks
from .affine_grid import AffineGrid
from .binary import Binary
from .contract import Parametrization
from .e8p import E8P
from .nested_grid import NestedGrid
from .options import FitOptions, SearchOptions
from .quantized_nonzeros import QuantizedNonzeros
from .quantized_scales import QuantizedScales
from .query import Candidates, Query
from .registry import PARAMETRIZATIONS
from .representation import Representation
from .scheme import Scheme, as_scheme, parse_scheme
from .shared_values import SharedValues
from .sparse import Sparse, SparseNM
from .storage import Storage
from .ternary import Ternary
from .trellis import Trellis
from .uniform_grid import UniformGrid
from .vector_codebook import VectorCodebook

__all__ = [
    "E8P",
    "PARAMETRIZATIONS",
    "AdditiveCodebooks",
    "AffineGrid",
    "Binary",
    "Candidates",
    "FitOptions",
    "NestedGrid",
    "Parametrization",
    "QuantizedNonzeros",
    "QuantizedScales",
    "Query",
    "Representation",
    "Scheme",
    "SearchOptions",
    "SharedValues",
    "Sparse",
    "SparseNM",
    "Storage",
    "Ternary",
    "Trellis",
    "UniformGrid",
    "VectorCodebook",
    "as_scheme",
    "parse_scheme",
]
