"""Files of GPTQ, which transformers and servers load."""

from .gptq import GPTQFormat
from .layers import GPTQGrid

__all__ = ["GPTQFormat", "GPTQGrid"]
