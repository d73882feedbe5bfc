"""Reading the container GGUF: named settings, a table of tensors, their bytes.

The package gguf reads it too, but makes an array of every token, knows fewer types, and goes on for
ever in a file that says that a list is longer than it is.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pvopt.formats.errors import CheckpointError

__all__ = ["ARRAY", "MAGIC", "SCALARS", "STRING", "Container", "StoredTensor", "read_container"]

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
#: Types of settings, as struct has them.
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Args:
        number: of its type.
        shape: rows first.
        offset: of its bytes in the file.
        room: bytes from there to the next tensor, or to the end of the file.
        last: whether there is no next one.
    """

    number: int
    shape: tuple[int, ...]
    offset: int
    room: int = 0
    last: bool = False


@dataclass(frozen=True, eq=False)
class Container:
    """A file that was opened: nothing of its tensors is read yet.

    Args:
        file: its path.
        settings: numbers, strings and lists, by name.
        tensors: by name, in the order of their bytes.
        content: the whole file, mapped.
        settings_end: where the bytes of the settings end; the table of tensors follows.
        alignment: of tensors.
    """

    file: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    content: np.ndarray
    settings_end: int
    alignment: int

    def bytes_of(self, name: str, count: int) -> np.ndarray:
        """Return the bytes of a tensor, mapped.

        Args:
            name: of the tensor.
            count: of bytes, by its type and shape.

        Raises:
            CheckpointError: if the table has another place for them.
        """
        found = self.tensors[name]
        spare = found.room - count
        if spare < 0 or (spare >= self.alignment and not found.last):
            raise CheckpointError(
                f"{self.file}: {name!r} takes {count} bytes by its type and shape, and the file "
                f"has {found.room} for it"
            )
        return self.content[found.offset : found.offset + count]

    def without_tensors(self) -> bytes:
        """Return the bytes of a file with the same settings and no tensor."""
        head = bytes(self.content[:8]) + struct.pack("<Q", 0)
        return head + bytes(self.content[16 : self.settings_end])


def read_container(file: Path) -> Container:
    """Open a file and read all but its tensors.

    Args:
        file: a regular file.

    Raises:
        CheckpointError: if it is truncated, or no GGUF file of versions 2 or 3 in the order of
            bytes of most machines.
    """
    try:
        content = np.memmap(file, mode="r") if file.stat().st_size else np.empty(0, np.uint8)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    return _Parser(file, content).parse()


class _Parser:
    """A place in a file; whatever is read lies in the file."""

    def __init__(self, file: Path, content: np.ndarray) -> None:
        self._file, self._content, self._view = file, content, content.data
        self._at = 0

    def parse(self) -> Container:
        if bytes(self._take(4)) != MAGIC:
            raise CheckpointError(f"{self._file}: is no GGUF file")
        version = self._number("I")
        if version not in _VERSIONS:
            raise CheckpointError(f"{self._file}: has version {version}, known are {_VERSIONS}")
        num_tensors, num_settings = self._number("Q"), self._number("Q")
        settings: dict[str, Any] = {}
        for _ in range(num_settings):
            name = self._unused(settings)
            settings[name] = self._value(name, self._number("I"))
        end = self._at
        table: dict[str, StoredTensor] = {}
        for _ in range(num_tensors):
            name = self._unused(table)
            table[name] = self._tensor(name)
        alignment = settings.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 4096:
            raise CheckpointError(f"{self._file}: has the alignment {alignment!r}")
        placed = self._placed(table, -(-self._at // alignment) * alignment)
        return Container(self._file, settings, placed, self._content, end, alignment)

    def _placed(self, table: Mapping[str, StoredTensor], start: int) -> dict[str, StoredTensor]:
        """Return the tensors in order, with the room that each has."""
        placed: dict[str, StoredTensor] = {}
        end = len(self._content)
        for name, tensor in sorted(table.items(), key=lambda item: -item[1].offset):
            place = start + tensor.offset
            room = max(0, end - place)
            placed[name] = replace(tensor, offset=place, room=room, last=not placed)
            end = min(end, place)
        return dict(reversed(placed.items()))

    def _take(self, count: int) -> memoryview:
        if count > len(self._view) - self._at:
            raise CheckpointError(f"{self._file}: is truncated")
        self._at += count
        return self._view[self._at - count : self._at]

    def _number(self, kind: str) -> Any:
        size = struct.calcsize("<" + kind)
        return struct.unpack("<" + kind, self._take(size))[0]

    def _string(self) -> str:
        try:
            return str(self._take(self._number("Q")), "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._file}: has a name that is no text ({error})") from error

    def _unused(self, known: Mapping[str, Any]) -> str:
        name = self._string()
        if name in known:
            raise CheckpointError(f"{self._file}: has {name!r} twice")
        return name

    def _value(self, name: str, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            raise CheckpointError(f"{self._file}: {name!r} has the unknown type {kind}")
        item, count = self._number("I"), self._number("Q")
        if item == STRING:
            return [self._string() for _ in range(count)]
        if item not in SCALARS:
            raise CheckpointError(f"{self._file}: {name!r} is a list of the unknown type {item}")
        dtype = np.dtype("<" + SCALARS[item])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()

    def _tensor(self, name: str) -> StoredTensor:
        dimensions = self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise CheckpointError(f"{self._file}: {name!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        if min(shape) < 1 or math.prod(shape) > 1 << 62:
            raise CheckpointError(f"{self._file}: {name!r} has the shape {list(shape)}")
        return StoredTensor(self._number("I"), shape, self._number("Q"))
