"""Smoothness constants of a language model along random subsets of its weights."""
