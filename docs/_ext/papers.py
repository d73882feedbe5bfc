"""Make ``arXiv 2405.14852`` in a docstring a link."""

from __future__ import annotations

import re
from typing import Any

_PAPER = re.compile(r"(?<![`/\w])arXiv[ :](\d{4}\.\d{4,5})")


def linked(text: str) -> str:
    """Return a line of reStructuredText with its papers as links."""
    return _PAPER.sub(r"`arXiv \1 <https://arxiv.org/abs/\1>`__", text)


def _docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [linked(line) for line in lines]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", _docstring)
    return {"parallel_read_safe": True}
