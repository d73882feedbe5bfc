"""Files of compressed-tensors, which transformers and servers load."""

from .compressed_tensors import CompressedTensors
from .integer_grids import StoredGrid

__all__ = ["CompressedTensors", "StoredGrid"]
