"""The finished blocks of a calibration in a folder, for going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pvopt.formats import (
    CheckpointError,
    load_representations,
    read_metadata,
    save_representations,
)
from pvopt.formats.locks import locked
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme

__all__ = ["FinishedBlocks"]

_SETTINGS = "settings"


class FinishedBlocks:
    """The finished blocks of one calibration, each a folder of the native format.

    A folder is there as a whole or not at all. One without representations holds the settings.

    Args:
        folder: made if it does not exist.
        settings: everything the result depends on, as JSON.

    Raises:
        CheckpointError: if the folder holds blocks of other settings, or something else.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pvopt import SharedValues
        >>> from pvopt.calibration.finished_blocks import FinishedBlocks
        >>> blocks = FinishedBlocks(tempfile.mkdtemp(), {"seed": 0})
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> blocks.save("layers.0", {"w": rep}, {"w": 0.0})
        >>> representations, errors = blocks.load("layers.0", {"w": (rep.scheme, rep.shape)})
        >>> representations["w"].decode(), errors, "layers.1" in blocks
        (tensor([[0., 1.]]), {'w': 0.0}, False)
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Names with a dot are what an interrupted writer left.
            other = any(not entry.name.startswith(".") for entry in self._folder.iterdir())
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be used as a work folder ({error})") from error
        if _SETTINGS not in self:
            if other:
                raise CheckpointError(f"{folder}: must be empty or the work of a calibration")
            save_representations(self._folder / _SETTINGS, {}, metadata=settings)
        found = read_metadata(self._folder / _SETTINGS)
        wanted = json.loads(json.dumps(settings))
        different = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if different:
            raise CheckpointError(
                f"{folder}: holds blocks calibrated with other settings ({', '.join(different)}); "
                "take another folder or delete it"
            )

    def alone(self) -> AbstractContextManager[None]:
        """Keep other calibrations out of the folder.

        Raises:
            CheckpointError: if one is working there.
        """
        return locked(self._folder / ".lock", "another calibration")

    def __contains__(self, block: str) -> bool:
        return (self._folder / block).is_dir()

    def save(
        self,
        block: str,
        representations: Mapping[str, Representation],
        errors: Mapping[str, float],
    ) -> None:
        """Save the representations of a block, and the error of each."""
        texts = {name: repr(error) for name, error in errors.items()}  # JSON has no infinity
        save_representations(self._folder / block, representations, metadata={"errors": texts})

    def load(
        self, block: str, wanted: Mapping[str, tuple[Scheme, tuple[int, ...]]]
    ) -> tuple[dict[str, Representation], dict[str, float]]:
        """Read a finished block back, on the CPU.

        Args:
            block: its name.
            wanted: scheme and shape of each of its weights, by name.

        Raises:
            CheckpointError: if it is damaged, or holds other weights.
        """
        folder = self._folder / block
        try:
            errors, found = read_metadata(folder).get("errors"), load_representations(folder)
            if {name: (rep.scheme, rep.shape) for name, rep in found.items()} != dict(wanted):
                raise CheckpointError(f"{folder}: holds other weights than {', '.join(wanted)}")
            if not isinstance(errors, dict) or not found.keys() <= errors.keys():
                raise CheckpointError(f"{folder}: lacks the errors of its weights")
            return found, {name: float(text) for name, text in errors.items()}
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{error}; delete {folder} to calibrate the block again"
            ) from error
