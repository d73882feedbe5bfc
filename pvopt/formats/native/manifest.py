"""``pvopt.json``: what a checkpoint holds and how to read it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pvopt.core.streams import CodeStream
from pvopt.formats.errors import CheckpointError
from pvopt.formats.files import is_plain_name, read_bytes, read_json, regular_file
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme

__all__ = ["MANIFEST", "FileEntry", "Manifest", "WeightEntry", "files_of", "sealed"]

MANIFEST = "pvopt.json"
_FORMAT = "pvopt checkpoint"
_VERSION = 3
_DTYPES = {"float64", "float32", "bfloat16", "float16"}
_MAX_WEIGHTS = 1 << 40  # of one tensor


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum of a file, by which damage is noticed.

    Args:
        bytes: size.
        sha256: hexadecimal digest.
    """

    bytes: int
    sha256: str

    @classmethod
    def of(cls, file: Path) -> FileEntry:
        """Describe an existing file."""
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(file.stat().st_size, digest)

    @classmethod
    def from_json(cls, description: Any) -> FileEntry:
        """Read a description.

        Raises:
            ValueError: if it is none.
        """
        if not isinstance(description, dict) or description.keys() != {"bytes", "sha256"}:
            raise ValueError(f"a file needs bytes and sha256, got {description!r}")
        size, digest = description["bytes"], description["sha256"]
        if type(size) is not int or size < 0 or not isinstance(digest, str):
            raise ValueError(f"a file needs a number of bytes and a checksum, got {description!r}")
        return cls(size, digest)


@dataclass(frozen=True)
class WeightEntry:
    """How one quantized weight is stored.

    Args:
        scheme: the settings of the codes and values.
        shape: of the dense weight.
        dtype: of the dense weight in the model.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, rep: Representation, dtype: torch.dtype) -> WeightEntry:
        """Describe a representation.

        Raises:
            CheckpointError: if it is of several weights.
        """
        if rep.count != 1:
            raise CheckpointError(
                f"{name!r} must be the representation of one weight, got {rep.count} of them"
            )
        return cls(rep.scheme, rep.shape, dtype)

    @cached_property
    def streams(self) -> dict[str, CodeStream]:
        """The streams of codes that are stored."""
        return self.scheme.streams(self.shape)

    @cached_property
    def value_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the values that are stored."""
        return self.scheme.value_shapes(self.shape)


@dataclass(frozen=True)
class Manifest:
    """The content of ``pvopt.json``.

    Args:
        model_class: name of the model's class, for information; None where there is no model.
        weights: the quantized weights by parameter name.
        tied: further names of weights that are stored under another name.
        files: all other files that belong to the checkpoint.
        metadata: whatever the writer wanted to keep; primitives, lists and dictionaries.
    """

    model_class: str | None
    weights: Mapping[str, WeightEntry]
    tied: Mapping[str, str]
    files: Mapping[str, FileEntry]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``pvopt.json`` into a folder.

        Raises:
            CheckpointError: if a class is not registered, or the metadata are not plain JSON.
        """
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "model_class": self.model_class,
            "weights": {
                name: {
                    "shape": list(entry.shape),
                    "dtype": str(entry.dtype).removeprefix("torch."),
                    "scheme": _scheme_to_json(name, entry.scheme),
                }
                for name, entry in self.weights.items()
            },
            "tied": dict(self.tied),
            "files": {name: vars(entry) for name, entry in self.files.items()},
            "metadata": dict(self.metadata),
        }
        try:
            text = json.dumps(sealed(content), indent=1, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"metadata cannot be written to {MANIFEST}: {error}") from error
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``pvopt.json`` from a folder.

        Args:
            folder: the checkpoint.

        Raises:
            CheckpointError: if the file is missing, damaged, foreign or of another version.
        """
        file = folder / MANIFEST
        content = read_json(folder, MANIFEST)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CheckpointError(f"{file}: is not a pvopt checkpoint (its format is not named so)")
        version = content.get("version")
        if version != _VERSION:
            raise CheckpointError(
                f"{file}: has format version {version!r}; this pvopt reads version {_VERSION}"
            )
        try:
            found = cls._from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise CheckpointError(f"{file}: {error}") from error
            raise CheckpointError(
                f"{file}: is damaged ({type(error).__name__}: {error})"
            ) from error
        if content != sealed(content):
            raise CheckpointError(f"{file}: is damaged, its checksum differs from its content")
        return found

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Manifest:
        model_class, tied = content["model_class"], dict(content["tied"])
        if not isinstance(model_class, str | None):
            raise TypeError(f"model_class must be a string or null, got {model_class!r}")
        if not all(isinstance(owner, str) for owner in tied.values()):
            raise TypeError("tied must give names to names")
        for name in content["files"]:
            if not is_plain_name(name):
                raise CheckpointError(f"names a file outside of the checkpoint: {name!r}")
        return cls(
            model_class,
            {name: _weight(name, entry) for name, entry in content["weights"].items()},
            tied,
            {name: FileEntry.from_json(entry) for name, entry in content["files"].items()},
            dict(content["metadata"]),
        )

    def verify(self, folder: Path, name: str) -> Path:
        """Return the path of a file after checking its size and checksum.

        Raises:
            CheckpointError: if it is missing, of another size or changed, or no regular file.
        """
        if name not in self.files:
            raise CheckpointError(f"{folder / name}: is missing in {MANIFEST}")
        file = regular_file(folder, name)
        self._compare(file, self.files[name], file.stat().st_size, lambda: FileEntry.of(file))
        return file

    def read_verified(self, folder: Path, name: str) -> bytes:
        """Return the content of a file after checking its size and checksum.

        Raises:
            CheckpointError: as :meth:`verify`.
        """
        if name not in self.files:
            raise CheckpointError(f"{folder / name}: is missing in {MANIFEST}")
        expected = self.files[name]
        content = read_bytes(folder, name, expected.bytes + 1)
        digest = hashlib.sha256(content).hexdigest()
        found = FileEntry(len(content), digest)
        self._compare(folder / name, expected, len(content), lambda: found)
        return content

    @staticmethod
    def _compare(
        file: Path, expected: FileEntry, size: int, found: Callable[[], FileEntry]
    ) -> None:
        if size != expected.bytes:
            what = "truncated" if size < expected.bytes else "too long"
            raise CheckpointError(f"{file}: is {what}, {size} bytes instead of {expected.bytes}")
        if found() != expected:
            raise CheckpointError(f"{file}: is damaged, its checksum differs from {MANIFEST}")


def files_of(folder: Path) -> dict[str, FileEntry]:
    """Return the entries of all files in a folder, its subfolders included, by name."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): FileEntry.of(file) for file in files}


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``pvopt.json`` with its own checksum, by which damage is noticed.

    Example:
        >>> from pvopt.formats.native.manifest import sealed
        >>> sealed({"version": 3})["sha256"][:8]
        'd916c65e'
    """
    open_content = {name: value for name, value in content.items() if name != "sha256"}
    plain = json.dumps(open_content, sort_keys=True, allow_nan=False)
    return {**open_content, "sha256": hashlib.sha256(plain.encode()).hexdigest()}


def _scheme_to_json(name: str, scheme: Scheme) -> dict[str, Any]:
    try:
        return scheme.to_json()
    except ValueError as error:
        raise CheckpointError(f"weight {name!r}: {error}") from error


def _weight(name: str, entry: Any) -> WeightEntry:
    shape = tuple(entry["shape"])
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise CheckpointError(f"weight {name!r}: its shape must be of positive sizes, got {shape}")
    if math.prod(shape) > _MAX_WEIGHTS:
        raise CheckpointError(f"weight {name!r}: its shape {list(shape)} is beyond all models")
    try:
        scheme = Scheme.from_json(entry["scheme"])
        scheme.check(shape)
    except ValueError as error:
        raise CheckpointError(f"weight {name!r}: {error}") from error
    dtype = entry["dtype"]
    if dtype not in _DTYPES:
        raise CheckpointError(f"unknown dtype {dtype!r}")
    return WeightEntry(scheme, shape, getattr(torch, dtype))
