"""The contract of formats: how quantized models are read from folders, and written to them."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from pvopt.parametrizations.representation import Representation
from pvopt.weights import QuantizedWeights

from .errors import CheckpointError
from .unknown import unknown_reason

__all__ = ["FORMATS", "Checkpoint", "Formats", "Reader", "Writer"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A quantized model, as formats write and read it.

    Args:
        model: the model, its quantized weights decoded.
        weights: the representations, bound to the model.
        metadata: primitives, lists and dictionaries that the writer keeps.
        tokenizer: a transformers tokenizer to write, or None. None after reading, see
            :func:`load_tokenizer`.
        training_state: tensors and primitives to write for resuming, or None. None after reading,
            see :func:`load_training_state`.
    """

    model: nn.Module
    weights: QuantizedWeights
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    training_state: Mapping[str, Any] | None = None


class Reader(ABC):
    """Reads folders of one format, or single files."""

    #: What users call the format.
    name: ClassVar[str]

    #: What the names of single files end with, where such a file is a whole model.
    suffix: ClassVar[str | None] = None

    @abstractmethod
    def match(self, folder: Path) -> bool:
        """Tell whether a folder is in this format, by its files and their settings.

        Args:
            folder: an existing folder; it may be damaged or of any other kind.
        """

    @abstractmethod
    def read(self, folder: Path, model: nn.Module | None) -> Checkpoint:
        """Read a folder.

        Args:
            folder: an existing one that matches.
            model: module to fill in place, keeping its dtypes and devices; None rebuilds the saved
                model on the CPU.

        Raises:
            CheckpointError: if a file is missing, damaged or foreign, or does not fit the model;
                the model is unchanged then.
        """

    def metadata(self, folder: Path) -> dict[str, Any]:
        """Read what was kept with a model, without any tensor.

        Args:
            folder: an existing one that matches.

        Raises:
            CheckpointError: if it is damaged.
        """
        return {}

    def transformers_files(self, folder: Path) -> AbstractContextManager[Path]:
        """Give a folder with the files of transformers, checked as far as the format allows.

        Args:
            folder: an existing one that matches.

        Raises:
            CheckpointError: if a file is damaged.
        """
        return nullcontext(folder)


class Writer(ABC):
    """Writes folders of one format."""

    #: What users call the format.
    name: ClassVar[str]

    #: A file of every such folder. A folder without it is not replaced.
    marker: ClassVar[str]

    #: What readers decode weights in, whatever values are stored in; None for the values' dtype.
    decodes_in: ClassVar[torch.dtype | None] = None
    #: The command that serves a folder, with ``{folder}``, or its ``{parent}`` and ``{name}``.
    usage: ClassVar[str] = ""

    def loading(self, folder: str | Path) -> str:
        """Return the line that serves a folder: a command of a shell.

        Args:
            folder: written in this format.

        Example:
            >>> from pvopt.formats import FORMATS
            >>> FORMATS.writer("compressed-tensors").loading("my models/served")
            "vllm serve 'my models/served'"
        """
        path = Path(folder)
        parts = {"folder": path, "parent": path.parent, "name": path.name}
        return self.usage.format(**{key: shlex.quote(str(part)) for key, part in parts.items()})

    def with_settings(self, text: str) -> Writer:
        """Return a writer with settings, which follow the name of the format after a colon.

        Raises:
            ValueError: if there are no such settings.
        """
        raise ValueError(f"the format {self.name!r} takes no settings, got {text!r}")

    def prepared(self, rep: Representation) -> Representation:
        """Return the same weight in the form that the format stores, before values are rounded.

        Args:
            rep: codes and values of a weight; if it cannot be stored, it is returned as it is.
        """
        return rep

    @abstractmethod
    def can_write(self, checkpoint: Checkpoint) -> str | None:
        """Return why a model cannot be written losslessly in this format, or None if it can.

        Args:
            checkpoint: the model, its representations, and what is to be kept with them.
        """

    def foreign(self, folder: Path) -> Collection[str]:
        """Return what is in a folder of the format beside it: then the folder is not replaced.

        Args:
            folder: an existing one with the marker; it may be damaged.
        """
        return ()

    @abstractmethod
    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Write a model.

        Args:
            folder: an empty one, which is put in the place of an older one when it is complete.
            checkpoint: that can be written.
        """


Format = TypeVar("Format", bound=Reader | Writer)


class Formats:
    """Readers and writers by name; each registers itself, in its own package.

    Example:
        >>> from pvopt.formats import FORMATS
        >>> FORMATS.writer("native").name
        'native'
    """

    def __init__(self) -> None:
        self._formats: dict[str, Reader | Writer] = {}

    def register(self, cls: type[Format]) -> type[Format]:
        """Make a format known by its name; a decorator of a class without arguments.

        Raises:
            ValueError: if another format has the name.
        """
        known = self._formats.get(cls.name)
        if known is not None and type(known).__module__ != cls.__module__:
            raise ValueError(f"a format of the name {cls.name!r} is registered already")
        self._formats[cls.name] = cls()
        return cls

    def forget(self, name: str) -> None:
        """Take a format out of the registry again."""
        self._formats.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._formats)

    @property
    def markers(self) -> set[str]:
        """The files by which folders are known to be ours."""
        return {writer.marker for writer in self.writers}

    @property
    def readers(self) -> list[Reader]:
        """The formats that can be read, in order."""
        return [f for f in self._formats.values() if isinstance(f, Reader)]

    @property
    def writers(self) -> list[Writer]:
        """The formats that can be written, in order."""
        return [f for f in self._formats.values() if isinstance(f, Writer)]

    def reads_file(self, path: Path) -> bool:
        """Tell whether a path is that of a file which is a whole model by its name."""
        suffixes = {reader.suffix for reader in self.readers} - {None}
        return path.suffix in suffixes and path.is_file()

    def reader(self, path: Path) -> Reader:
        """Return the reader that a folder matches, or a file.

        Raises:
            CheckpointError: if there is none; the message says what the path holds.
        """
        single = self.reads_file(path)
        for reader in self.readers:
            if reader.suffix == path.suffix if single else reader.match(path):
                return reader
        names = ", ".join(reader.name for reader in self.readers)
        reason = unknown_reason(path)
        raise CheckpointError(
            f"{path}: has none of the formats that can be read: {names}; {reason}"
        )

    def writer(self, name: str) -> Writer:
        """Return the writer of a name, which a colon and settings may follow.

        Raises:
            ValueError: if there is none.
        """
        plain, colon, settings = name.partition(":")
        found = self._formats.get(plain)
        if not isinstance(found, Writer):
            names = ", ".join(writer.name for writer in self.writers)
            raise ValueError(f"format {name!r} cannot be written; known are {names}")
        return found.with_settings(settings) if colon else found


#: The formats that :func:`pvopt.formats.load` and :func:`pvopt.formats.save` know.
FORMATS = Formats()
