"""Spaces in which the groups of a weight live: rotated, permuted, scaled, padded, or its own."""

from .chain import Chain
from .contract import SPACES, Space
from .identity import Identity
from .orthogonal import transform
from .padding import Padding
from .permutation import Permutation
from .rotation import Rotation
from .scaling import Scaling
from .zero_row import ZeroRow

__all__ = [
    "SPACES",
    "Chain",
    "Identity",
    "Padding",
    "Permutation",
    "Rotation",
    "Scaling",
    "Space",
    "ZeroRow",
    "transform",
]
