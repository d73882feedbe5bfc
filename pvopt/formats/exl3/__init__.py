"""Files of EXL3, which ExLlamaV3 loads."""

from .exl3 import EXL3Format

__all__ = ["EXL3Format"]
