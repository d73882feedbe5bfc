"""Pictures that the build draws, each for a light and for a dark page: ``{picture} NAME``."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import drawings
import matplotlib as mpl
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective
from written import write

_SHARED: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 12,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",  # text stays text: small, sharp, and found by a reader
    "svg.hashsalt": "pvopt",  # the same file from the same picture
}
# Colours that people who see few of them tell apart, on white and on black.
_CYCLE = mpl.cycler(color=["#0077bb", "#ee7733", "#009988", "#cc3311", "#aa4499", "#999933"])
_INK = {"light": "#24292f", "dark": "#d8dee9"}


def style(theme: str) -> dict[str, Any]:
    """Return matplotlib's settings for a light or a dark page."""
    ink = _INK[theme]
    parts = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {**_SHARED, "axes.prop_cycle": _CYCLE, **dict.fromkeys(parts, ink), "grid.color": ink}


def draw(name: str, theme: str) -> str:
    """Return a picture as SVG."""
    from matplotlib import pyplot

    with mpl.rc_context(style(theme)):
        figure = drawings.DRAWINGS[name](_INK[theme])
        file = io.StringIO()
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
    return file.getvalue()


class Picture(SphinxDirective):
    """A picture with a caption.

    ``:alt:`` says what is on it, ``:wide:`` that it has several panels.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Callable[[str], Any]]] = {
        "alt": directives.unchanged_required,
        "wide": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """Return a figure with one image for each theme."""
        figure = nodes.figure(classes=["picture", *(["wide"] if "wide" in self.options else [])])
        for theme in _INK:
            image = nodes.image(
                uri=f"/generated/{self.arguments[0]}-{theme}.svg",
                alt=self.options["alt"],
                classes=[f"only-{theme}"],
            )
            self.set_source_info(image)
            figure += image
        if self.content:
            inner = nodes.Element()
            self.state.nested_parse(self.content, self.content_offset, inner)
            caption = nodes.caption()
            caption += [child for part in inner.children for child in part.children]
            figure += caption
        return [figure]


def _generate(app: Any) -> None:
    mpl.use("Agg")
    for name in drawings.DRAWINGS:
        for theme in _INK:
            write(Path(app.srcdir) / "generated" / f"{name}-{theme}.svg", draw(name, theme))


def _lazy(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    # A page loads what is seen: neither the pictures of the other theme nor those far below.
    if "body" in context:
        context["body"] = context["body"].replace("<img ", '<img loading="lazy" ')


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("picture", Picture)
    app.connect("html-page-context", _lazy)
    app.connect("builder-inited", _generate)
    return {"parallel_read_safe": True}
