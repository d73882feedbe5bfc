"""``pvopt.json``: what a checkpoint holds and how to read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pvopt.core.streams import CodeStream
from pvopt.formats.errors import CheckpointError
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme

__all__ = ["MANIFEST", "FileEntry", "Manifest", "WeightEntry"]

MANIFEST = "pvopt.json"
_FORMAT = "pvopt checkpoint"
_VERSION = 2


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
        files: the tensor files.
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
            text = json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"metadata cannot be written to {MANIFEST}: {error}") from error
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``pvopt.json`` from a folder.

        Args:
            folder: the checkpoint.

        Raises:
            CheckpointError: if the file is missing, damaged, foreign or of a newer version.
        """
        file = folder / MANIFEST
        content = _read_json(file)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CheckpointError(f"{file}: is not a pvopt checkpoint (its format is not named so)")
        version = content.get("version")
        if version != _VERSION:
            raise CheckpointError(
                f"{file}: has format version {version!r}; this pvopt reads version {_VERSION}"
            )
        try:
            return cls(
                content["model_class"],
                {name: _weight(name, entry) for name, entry in content["weights"].items()},
                dict(content["tied"]),
                {n: FileEntry(int(e["bytes"]), e["sha256"]) for n, e in content["files"].items()},
                dict(content["metadata"]),
            )
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{file}: is damaged ({type(error).__name__}: {error})"
            ) from error

    def verify(self, folder: Path, name: str) -> Path:
        """Return the path of a tensor file after checking its size and checksum.

        Raises:
            CheckpointError: if it is missing, of another size or changed.
        """
        file = folder / name
        if name not in self.files or not file.is_file():
            raise CheckpointError(f"{file}: is missing")
        expected, size = self.files[name], file.stat().st_size
        if size != expected.bytes:
            what = "truncated" if size < expected.bytes else "too long"
            raise CheckpointError(f"{file}: is {what}, {size} bytes instead of {expected.bytes}")
        if FileEntry.of(file) != expected:
            raise CheckpointError(f"{file}: is damaged, its checksum differs from {MANIFEST}")
        return file


def _scheme_to_json(name: str, scheme: Scheme) -> dict[str, Any]:
    try:
        return scheme.to_json()
    except ValueError as error:
        raise CheckpointError(f"weight {name!r}: {error}") from error


def _weight(name: str, entry: Any) -> WeightEntry:
    shape = tuple(int(size) for size in entry["shape"])
    try:
        scheme = Scheme.from_json(entry["scheme"])
        scheme.check(shape)
    except ValueError as error:
        raise CheckpointError(f"weight {name!r}: {error}") from error
    return WeightEntry(scheme, shape, _dtype(entry["dtype"]))


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: is missing; is this a pvopt checkpoint?") from error
    except ValueError as error:  # of the decoding of the text or of JSON
        raise CheckpointError(f"{file}: is truncated or not JSON ({error})") from error


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"unknown dtype {name!r}")
    return dtype
