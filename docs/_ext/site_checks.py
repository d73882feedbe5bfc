"""Look at the finished pages: links, pictures, weight. The build fails if something is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from site_browser import BROWSER, WIDTH, wide_pages
from sphinx.errors import SphinxError

#: Bytes of one page; a phone on a slow net loads that in a second or two.
MAX_BYTES = 300_000

_LINK = re.compile(r'<(?:a|link|img|script)\b[^>]*?\s(?:href|src)="([^"]*)"')
_IMAGE = re.compile(r"<img\b[^>]*>")
_IDS = re.compile(r'\sid="([^"]*)"')


def problems(site: Path) -> Iterator[str]:
    """Yield what is wrong with the pages of a folder."""
    texts = {page: page.read_text("utf-8") for page in site.rglob("*.html")}
    ids = {page: set(_IDS.findall(text)) for page, text in texts.items()}
    for page, text in texts.items():
        name = page.relative_to(site)
        if len(text.encode()) > MAX_BYTES:
            yield f"{name}: has {len(text.encode()):,} bytes, at most {MAX_BYTES:,} are allowed"
        if text.count("<h1") != 1 and page.name != "search.html":
            yield f"{name}: must have one title, has {text.count('<h1')}"
        for image in _IMAGE.findall(text):
            if " alt=" not in image:
                yield f"{name}: no text in place of {image}"
        for link in set(_LINK.findall(text)):
            if re.match(r"[a-z]+:|//", link):
                continue  # another site, which nobody asks
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not target.exists():
                yield f"{name}: leads to {link}, which is not there"
            elif name.parts[0] == "_modules":
                continue  # viewcode takes one package for all names of a module; the page is right
            elif anchor and target in ids and anchor not in ids[target]:
                yield f"{name}: leads to {link}, where there is no such place"


def _too_wide(site: Path) -> Iterator[str]:
    """Yield which pages do not fit on a phone, where there is a browser to look at them."""
    if BROWSER is not None:
        pages = [f"{p.relative_to(site)}" for p in (*site.glob("*.html"), *site.glob("api/*.html"))]
        for page, width in wide_pages(site, sorted(pages)).items():
            yield f"{page}: is {width} pixels wide on a screen of {WIDTH}"


def _check(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        site = Path(app.outdir).resolve()
        found = sorted([*problems(site), *_too_wide(site)])
        if found:
            raise SphinxError("\n".join(["the pages have faults:", *found]))


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True}
