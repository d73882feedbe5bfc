"""Text files that are replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["replace_text"]


def replace_text(file: str | Path, text: str) -> None:
    """Write a file in UTF-8, in the place of an older one; whoever is interrupted leaves that.

    Args:
        file: where to, in an existing folder; a link is followed.
        text: all of its content.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.core.text_files import replace_text
        >>> file = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> replace_text(file, "new")
        >>> file.read_text(), len(list(file.parent.iterdir()))
        ('new', 1)
    """
    target = Path(os.path.realpath(file))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
