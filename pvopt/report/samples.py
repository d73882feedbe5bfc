"""What models write, side by side."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Sample"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text that a model went on with.

    Args:
        model: name of the run, or of an original.
        prompt: what it was given.
        text: what it wrote.
    """

    model: str
    prompt: str
    text: str
