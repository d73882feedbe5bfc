"""Files of compressed-tensors, which transformers and servers load."""

from .compressed_tensors import CompressedTensors

__all__ = ["CompressedTensors"]
