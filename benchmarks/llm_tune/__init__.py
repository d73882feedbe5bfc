"""Tune a 2-bit SmolLM2-135M by every recipe: perplexity, seconds, memory, changed codes."""
