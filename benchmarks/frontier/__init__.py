"""Bits against quality, before and after tuning: perplexity, divergence, agreement of formats."""
