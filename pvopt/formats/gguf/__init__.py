"""Files of llama.cpp."""

from .gguf import GGUF

__all__ = ["GGUF"]
