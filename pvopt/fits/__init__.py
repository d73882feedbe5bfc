"""Starts of values and codes as functions of plain tensors, without data."""

from .codebooks import fit_codebooks
from .kmeans import kmeans, nearest_centroid
from .scalars import nearest_scalar, scalar_kmeans

__all__ = ["fit_codebooks", "kmeans", "nearest_centroid", "nearest_scalar", "scalar_kmeans"]
