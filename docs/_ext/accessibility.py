"""Mend what the theme and extensions leave out for those who read with a keyboard or by ear."""

from __future__ import annotations

from typing import Any

#: In the text of a page: what scrolls can be reached by the keyboard, and roles fit together.
_IN_BODY = {
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    '<figure class="picture wide': '<figure tabindex="0" class="picture wide',
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    ' role="doc-biblioentry"': "",
}
_IN_NAVIGATION = {' role="heading">': ' role="heading" aria-level="2">'}


def _replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def _mend(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    for key, changes in (("body", _IN_BODY), ("furo_navigation_tree", _IN_NAVIGATION)):
        if key in context:
            context[key] = _replaced(context[key], changes)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", _mend, priority=900)  # after the theme's own
    return {"parallel_read_safe": True}
