"""Writing the container GGUF, one tensor at a time."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .container import ARRAY, MAGIC, SCALARS, STRING

__all__ = ["TensorEntry", "write_container"]

_VERSION = 3
_ALIGNMENT = 32
_NUMBERS = {kind: number for number, kind in SCALARS.items()}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """What the table says of a tensor.

    Args:
        name: in the file.
        number: of its type.
        shape: rows first.
        size: bytes.
    """

    name: str
    number: int
    shape: tuple[int, ...]
    size: int


def write_container(
    file: Path,
    settings: Mapping[str, Any],
    table: Iterable[TensorEntry],
    contents: Iterable[Tensor],
) -> None:
    """Write a file.

    Args:
        file: where to.
        settings: strings, truth values, integers, floats, lists of one kind of them, by name.
        table: all tensors.
        contents: of each in turn, made when it is written.
    """
    entries = list(table)
    with open(file, "wb") as stream:
        stream.write(MAGIC + struct.pack("<IQQ", _VERSION, len(entries), len(settings)))
        for name, value in settings.items():
            stream.write(_text(name) + _setting(value))
        start = 0
        for entry in entries:
            shape = struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
            head = _text(entry.name) + struct.pack("<I", len(entry.shape)) + shape
            stream.write(head + struct.pack("<IQ", entry.number, start))
            start += math.ceil(entry.size / _ALIGNMENT) * _ALIGNMENT
        _pad(stream)
        for entry, content in zip(entries, contents, strict=True):
            flat = content.detach().cpu().contiguous().flatten().view(torch.uint8)
            if len(flat) != entry.size:
                raise ValueError(f"{entry.name!r} must have {entry.size} bytes, got {len(flat)}")
            stream.write(flat.numpy().data)
            _pad(stream)


def _pad(stream: BinaryIO) -> None:
    stream.write(bytes(-stream.tell() % _ALIGNMENT))


def _text(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def _setting(value: Any) -> bytes:
    """Return type and content of a setting."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            head = struct.pack("<IIQ", ARRAY, STRING, len(value))
            return head + b"".join(map(_text, value))
        kind = "f" if isinstance(value[0], float) else "i"
        head = struct.pack("<IIQ", ARRAY, _NUMBERS[kind], len(value))
        return head + struct.pack(f"<{len(value)}{kind}", *value)
    kind = "?" if isinstance(value, bool) else "I" if isinstance(value, int) else "f"
    return struct.pack(f"<I{kind}", _NUMBERS[kind], value)
