"""Ship a font for formulas: the glyphs of STIX Two Math that the pages use.

Without one, browsers take what a system has: on many that is a font for text, without large braces
and with signs of other widths.
"""

from __future__ import annotations

import logging
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

_FORMULA = re.compile(r"<math\b.*?</math>", re.DOTALL)
# Letters that stand alone are set in italics: browsers take these from another block of Unicode.
_ITALICS = {
    **{chr(ord("A") + n): chr(0x1D434 + n) for n in range(26)},
    **{chr(ord("a") + n): chr(0x1D44E + n) for n in range(26)},
    **{chr(0x391 + n): chr(0x1D6E2 + n) for n in range(25)},
    **{chr(0x3B1 + n): chr(0x1D6FC + n) for n in range(25)},
    **dict(zip("ϵϑϰϕϱϖ", map(chr, range(0x1D716, 0x1D71C)), strict=True)),
    "h": "ℎ",
}


def characters(pages: list[str]) -> str:
    """Return the characters that the formulas of pages are set in, sorted."""
    from html import unescape

    texts = (re.sub(r"<[^>]*>", "", found) for page in pages for found in _FORMULA.findall(page))
    seen = set(unescape("".join(texts)))
    seen |= {_ITALICS[letter] for letter in seen & _ITALICS.keys()}
    return "".join(sorted(seen - set("\n\t")))


def subset(text: str) -> bytes:
    """Return a WOFF2 file with the glyphs of some characters, in all sizes that formulas need."""
    from io import BytesIO

    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    logging.getLogger("fontTools").setLevel(logging.WARNING)
    font = TTFont(str(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"))
    cut = Subsetter(Options(layout_features=["ssty"], hinting=False))
    cut.populate(text=text)
    cut.subset(font)
    font.flavor = "woff2"
    file = BytesIO()
    font.save(file)
    return file.getvalue()


def _write(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    text = characters([page.read_text("utf-8") for page in sorted(folder.rglob("*.html"))])
    file, note = folder / "_static" / "math.woff2", Path(app.doctreedir) / "math-font.txt"
    if not (file.exists() and note.exists() and note.read_text("utf-8") == text):
        file.write_bytes(subset(text))
        note.write_text(text, "utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True}
