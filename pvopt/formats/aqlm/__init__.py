"""Files of AQLM, which transformers loads."""

from .aqlm import AQLMFormat

__all__ = ["AQLMFormat"]
