"""Layers that keep codes and values alone, and models made of them."""

from .conversion import representations, to_dense, to_quantized
from .packed_weight import PackedWeight
from .quantized_linear import QuantizedLinear

__all__ = ["PackedWeight", "QuantizedLinear", "representations", "to_dense", "to_quantized"]
