"""Files of others: what is read is a regular file in its folder, and of bounded size and depth."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from .errors import CheckpointError

__all__ = ["MAX_JSON_BYTES", "is_plain_name", "read_bytes", "read_json", "regular_file", "root_of"]

#: Settings of a million experts take less.
MAX_JSON_BYTES = 1 << 27
_MAX_DEPTH = 100
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def is_plain_name(name: object) -> bool:
    """Tell whether a name is that of a file inside of a folder, on every system.

    Example:
        >>> from pvopt.formats.files import is_plain_name
        >>> is_plain_name("model.safetensors"), is_plain_name("../model.safetensors")
        (True, False)
    """
    if not isinstance(name, str) or not name or any(c in name for c in '\\:\0"<>|?*'):
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name != "."


def root_of(folder: Path) -> Path:
    """Return the folder that links in a folder of a model may not leave.

    Models of the hub's cache consist of links into a folder of blobs beside; these are followed.

    Example:
        >>> from pathlib import Path
        >>> from pvopt.formats.files import root_of
        >>> root_of(Path("cache/models--a--b/snapshots/0f3")).name, root_of(Path("runs/a")).name
        ('models--a--b', 'a')
    """
    return folder.parent.parent if folder.parent.name == "snapshots" else folder


def regular_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, after a look at what it is; it is not opened.

    Raises:
        CheckpointError: if it is missing, a FIFO, a device, a socket or a folder, or a link to
            something outside of the folder.

    Example:
        >>> import os
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.files import regular_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> os.mkfifo(folder / "config.json")
        >>> regular_file(folder, "config.json")
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...config.json: is a FIFO, only regular files are read
    """
    file = folder / name
    try:
        mode = file.stat().st_mode
        root = os.path.realpath(root_of(folder))
        inside = Path(os.path.realpath(file)).is_relative_to(root)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: is missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise CheckpointError(f"{file}: is {kind}, only regular files are read")
    if not inside:
        raise CheckpointError(f"{file}: is a link out of the folder, which is not followed")
    return file


def read_bytes(folder: Path, name: str, limit: int) -> bytes:
    """Read a whole file of a folder.

    Raises:
        CheckpointError: if it is not a regular file, cannot be read, or is longer than ``limit``.
    """
    file = regular_file(folder, name)
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            content = stream.read(min(size, limit) + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if len(content) > limit:
        raise CheckpointError(f"{file}: has more than {limit} bytes")
    return content


def read_json(
    folder: Path,
    name: str,
    *,
    limit: int = MAX_JSON_BYTES,
    within: Path | None = None,
    strict: bool = True,
) -> Any:
    """Read a JSON file of a folder: UTF-8, of bounded size and depth.

    Args:
        folder: where it is.
        name: of the file.
        limit: bytes at most.
        within: the folder that a link may not leave; None for ``folder``.
        strict: whether numbers must be finite and names occur once, as we write them; others write
            ``Infinity``.

    Raises:
        CheckpointError: if it is anything else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.files import read_json
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "x.json").write_text("[" * 200 + "]" * 200)
        >>> read_json(folder, "x.json")
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...x.json: is nested more than 100 levels deep
    """
    root = within or folder
    content = read_bytes(root, (folder / name).relative_to(root).as_posix(), limit)
    try:
        found = json.loads(content.decode("utf-8"), **(_STRICT if strict else {}))
    except RecursionError as error:
        raise CheckpointError(
            f"{folder / name}: is nested more than {_MAX_DEPTH} levels deep"
        ) from error
    except ValueError as error:  # of the decoding of the text or of JSON
        raise CheckpointError(f"{folder / name}: is truncated or not JSON ({error})") from error
    level: Iterable[Any] = [found]
    for _ in range(_MAX_DEPTH):
        level = [part for item in level for part in _parts(item)]
        if not level:
            return found
    raise CheckpointError(f"{folder / name}: is nested more than {_MAX_DEPTH} levels deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is too large")
    return value


_STRICT: dict[str, Any] = {
    "object_pairs_hook": _unique,
    "parse_constant": _refuse_constant,
    "parse_float": _finite,
}


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, Mapping):
        return item.values()
    return item if isinstance(item, list) else ()
