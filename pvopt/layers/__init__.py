"""Layers that keep codes and values in place of a dense weight."""
