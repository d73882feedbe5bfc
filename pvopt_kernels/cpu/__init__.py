"""Implementations for CPUs, for operations where plain torch is far from what the CPU can do."""
