"""The one error of this package."""

from __future__ import annotations

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names the file and what is wrong."""
