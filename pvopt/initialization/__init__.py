"""Starts for the continuous values and the codes."""

from .kmeans import kmeans, nearest_centroid

__all__ = ["kmeans", "nearest_centroid"]
