"""Render formulas as MathML when the pages are built: browsers show it without any script."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert

# What the converter does not know, in terms of what it knows.
_MACROS = {r"\arg": r"\operatorname{arg}"}
# Delimiters that it leaves as they are after \big and its like.
_LARGE = {r"\{": "{", r"\}": "}", r"\|": "‖"}


def to_mathml(tex: str, *, display: bool) -> str:
    """Convert a formula, or several lines of one that are aligned at ``&``.

    Raises:
        ValueError: for a command that is not understood.
    """
    for macro, replacement in _MACROS.items():
        tex = re.sub(re.escape(macro) + r"(?![a-zA-Z])", lambda _, r=replacement: r, tex)
    if display and r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{split}}{tex}\end{{split}}"
    result = convert(tex, display="block" if display else "inline")
    for command, sign in _LARGE.items():
        result = result.replace(f">{command}<", f">{sign}<")
    unknown = re.findall(r">(\\[^<]*|&)<", result)
    if unknown:
        raise ValueError(f"not understood: {' '.join(sorted(set(unknown)))}")
    return _primes_in_line(result)


def _primes_in_line(mathml: str) -> str:
    """Set primes beside what they belong to: the sign is raised by itself, and not once more."""
    space = "{http://www.w3.org/1998/Math/MathML}"
    ElementTree.register_namespace("", space[1:-1])
    root = ElementTree.fromstring(mathml)
    for element in root.iter():
        kind = element.tag.removeprefix(space)
        if kind not in ("msup", "msubsup") or element[-1].text != "\N{PRIME}":
            continue
        *base, prime = element
        if kind == "msubsup":
            below = ElementTree.Element(f"{space}msub")
            below.extend(base)
            base = [below]
        element.tag = f"{space}mrow"
        element[:] = [*base, prime]
    return ElementTree.tostring(root, encoding="unicode")


def _visit(self: Any, node: Any, *, display: bool) -> None:
    from docutils import nodes
    from sphinx.util import logging

    try:
        mathml = to_mathml(node.astext(), display=display)
    except Exception as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        mathml = f"<code>{self.encode(node.astext())}</code>"
    self.body.append(f'<div class="math">{mathml}</div>' if display else mathml)
    raise nodes.SkipNode


def _visit_inline(self: Any, node: Any) -> None:
    _visit(self, node, display=False)


def _visit_block(self: Any, node: Any) -> None:
    _visit(self, node, display=True)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True}
