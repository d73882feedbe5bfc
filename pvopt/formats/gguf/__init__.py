"""Files of llama.cpp."""

from .gguf import GGUF, holds_gguf

__all__ = ["GGUF", "holds_gguf"]
