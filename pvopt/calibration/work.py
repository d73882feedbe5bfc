"""A folder with the finished blocks of a calibration, for going on after an interruption."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pvopt.formats.errors import CheckpointError
from pvopt.parametrizations import Parametrization, Representation

__all__ = ["WorkFolder"]

_SETTINGS = "calibration.json"


class WorkFolder:
    """The finished blocks of one calibration.

    Each block is a file of codes and values, and a small one with its checksum and report that is
    written when the first one is safe on the disk. Both are written under a temporary name,
    flushed and renamed: a block is there as a whole or not at all.

    Args:
        folder: made if it does not exist.
        settings: everything the result depends on, as JSON.

    Raises:
        CheckpointError: if the folder holds blocks of other settings, or something else.

    Example:
        >>> import tempfile
        >>> from pvopt import SharedValues
        >>> work = WorkFolder(tempfile.mkdtemp(), {"seed": 0})
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> work.save("layers.0", {"w": rep}, {"w": 0.0})
        >>> representations, report = work.load("layers.0", {"w": SharedValues(num_values=2)}, {"w": (1, 2)})
        >>> representations["w"].decode(), work.finished("layers.1")
        (tensor([[0., 1.]]), False)
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / _SETTINGS
        text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if not file.exists():
            if any(entry.suffix != ".partial" for entry in self._folder.iterdir()):
                raise CheckpointError(f"{folder}: must be empty or the work of a calibration")
            _write(file, text.encode())
            return
        found = _read_json(file)
        wanted = json.loads(text)
        different = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if different:
            raise CheckpointError(
                f"{folder}: holds blocks calibrated with other settings ({', '.join(different)}); "
                "take another folder or delete it"
            )

    def _files(self, block: str) -> tuple[Path, Path]:
        return self._folder / f"{block}.pt", self._folder / f"{block}.json"

    def finished(self, block: str) -> bool:
        """Tell whether a block has been saved."""
        return self._files(block)[1].exists()

    def save(
        self,
        block: str,
        representations: Mapping[str, Representation],
        report: Mapping[str, float],
    ) -> None:
        """Save the representations of a block, and a number for each of its weights."""
        data, summary = self._files(block)
        stream = io.BytesIO()
        torch.save({name: dict(rep.tensors()) for name, rep in representations.items()}, stream)
        content = stream.getvalue()
        _write(data, content)
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "report": dict(report)}
        _write(summary, (json.dumps(entry) + "\n").encode())

    def load(
        self,
        block: str,
        parametrizations: Mapping[str, Parametrization],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> tuple[dict[str, Representation], dict[str, float]]:
        """Read a finished block back; its checksum is verified.

        Raises:
            CheckpointError: if it is damaged, or its weights are not those named.
        """
        data, summary = self._files(block)
        entry = _read_json(summary)
        advice = f"delete {summary.name} to calibrate the block again"
        try:
            content = data.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{data}: cannot be read ({error}); {advice}") from error
        if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
            raise CheckpointError(f"{data}: is damaged, its checksum differs; {advice}")
        try:
            stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            representations = {
                name: Representation(
                    parametrization,
                    stored[name].pop("codes"),
                    {key.removeprefix("values."): value for key, value in stored[name].items()},
                    shapes[name],
                )
                for name, parametrization in parametrizations.items()
            }
        except (KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{data}: does not fit the model ({error}); {advice}") from error
        return representations, entry["report"]


def _write(file: Path, content: bytes) -> None:
    """Write a file so that it is on the disk as a whole or not at all."""
    partial = file.with_suffix(file.suffix + ".partial")
    with open(partial, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
    if hasattr(os, "O_DIRECTORY"):  # Windows: folders cannot be opened
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
