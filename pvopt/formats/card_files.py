"""Model cards as files: a card that somebody has edited is theirs and stays as it is."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from pathlib import Path

from .errors import CheckpointError
from .files import read_bytes

__all__ = ["CARD", "edited_card", "sealed_card"]

CARD = "README.md"
_MOST_BYTES = 1 << 24
_SEAL = re.compile(r"<!-- pvopt \S+ wrote this card; [^(]*\(sha256 ([0-9a-f]{64})\) -->\n")


def sealed_card(front: str, body: str) -> str:
    """Return the text of a card with a line by which edits are noticed.

    Args:
        front: YAML between its dashes, which hubs read; it comes first.
        body: Markdown.
    """
    return (
        f"{front}<!-- pvopt {version('pvopt')} wrote this card; once edited, it is left as it is "
        f"(sha256 {_digest(front + body)}) -->\n{body}"
    )


def edited_card(folder: Path) -> str | None:
    """Return the card of a folder if it is not as it was written, else None.

    Args:
        folder: existing or not.

    Raises:
        CheckpointError: if it is not a text file of reasonable size.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.card_files import edited_card, sealed_card
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "README.md").write_text(sealed_card("", "ours"))
        >>> edited_card(folder) is None
        True
        >>> _ = (folder / "README.md").write_text("mine")
        >>> edited_card(folder)
        'mine'
    """
    file = folder / CARD
    if not file.is_symlink() and not file.exists():
        return None
    try:
        text = read_bytes(folder, CARD, _MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: is not UTF-8 text, so it is not replaced") from error
    seal = _SEAL.search(text)
    return None if seal and _digest(_SEAL.sub("", text, count=1)) == seal[1] else text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
