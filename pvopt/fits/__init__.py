"""Starts of values and codes as functions of plain tensors, without data."""

from .codebooks import fit_codebooks
from .kmeans import kmeans, nearest_centroid

__all__ = ["fit_codebooks", "kmeans", "nearest_centroid"]
