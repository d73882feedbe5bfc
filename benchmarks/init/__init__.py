"""Starts before any tuning: perplexity, layer error, bits, seconds and memory of every format."""
