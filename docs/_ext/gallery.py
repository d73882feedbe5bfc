"""Thumbnails of the benchmarks' pictures: ``{gallery}`` with a line ``folder/name: title`` each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from matplotlib import image
from sphinx.util.docutils import SphinxDirective

PICTURES = Path(__file__).parents[2] / "benchmarks" / "pictures"
_WIDTH = 320


class Gallery(SphinxDirective):
    """Pictures, small, each of which links to the section ``picture-name`` of the page."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a list of links."""
        box = nodes.container(classes=["gallery"])
        for line in self.content:
            path, _, title = line.partition(": ")
            name = path.rpartition("/")[2]
            link = nodes.reference("", "", refid=f"picture-{name.replace('_', '-')}", internal=True)
            link += nodes.image(uri=f"/generated/thumbnails/{name}.png", alt="")
            link += nodes.inline("", title)
            box += nodes.paragraph("", "", link)
        return [box]


def _generate(app: Any) -> None:
    folder = Path(app.srcdir) / "generated" / "thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES.glob("*/*.png"):
        small = folder / picture.name
        if not small.exists() or small.stat().st_mtime < picture.stat().st_mtime:
            width = image.imread(picture).shape[1]
            image.thumbnail(str(picture), str(small), scale=_WIDTH / width, interpolation="hanning")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("gallery", Gallery)
    app.connect("builder-inited", _generate)
    return {"parallel_read_safe": True}
