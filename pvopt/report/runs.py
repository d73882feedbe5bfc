"""What a page shows of one folder: a run, finished or not, or a checkpoint alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvopt.formats import (
    FORMATS,
    CheckpointError,
    StorageReport,
    complete_folder,
    read_metadata,
    storage_report,
)
from pvopt.tuning import find_checkpoint
from pvopt.tuning.records import RECORDS

from .records import read_records

__all__ = ["ReportedRun", "read_runs"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportedRun:
    """A run or a checkpoint.

    Args:
        name: what it is called on the page.
        folder: where it is.
        metadata: of the checkpoint, or of the run's beginning.
        storage: what the checkpoint takes; None where there is none yet.
        records: of the run, in order; none for a checkpoint alone.

    Example:
        >>> from pathlib import Path
        >>> from pvopt.report import ReportedRun
        >>> records = [{"kind": "start", "step": 0, "settings": {"steps": 9}, "metadata": {}}]
        >>> ReportedRun(name="mine", folder=Path("runs/mine"), records=records).state
        'unfinished, 0 of 9'
    """

    name: str
    folder: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)
    storage: StorageReport | None = None
    records: Sequence[Mapping[str, Any]] = ()

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the records of a kind."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the run tunes; nothing for a checkpoint alone."""
        starts = self.of_kind("start")
        found = starts[-1]["settings"] if starts else self.metadata.get("settings")
        return found if isinstance(found, Mapping) else {}

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The records of steps."""
        return self.of_kind("step")

    def evaluations(self, model: str) -> list[Mapping[str, Any]]:
        """Return the evaluations of ``student`` or ``teacher``."""
        return [record for record in self.of_kind("evaluation") if record["model"] == model]

    @property
    def state(self) -> str:
        """How far the run has come."""
        if not self.records:
            return "a checkpoint"
        done = max(record["step"] for record in self.records)
        wanted = self.settings.get("steps")
        if not isinstance(wanted, int):
            return f"{done} steps"
        return f"finished, {done} steps" if done >= wanted else f"unfinished, {done} of {wanted}"

    @property
    def code_changes(self) -> dict[str, float]:
        """How often the code of a group changed on average, by weight."""
        changed: Counter[str] = Counter()
        groups: dict[str, int] = {}
        for record in self.of_kind("codes"):
            changed.update(record["changed"])
            groups |= record["groups"]
        return {name: changed[name] / groups[name] for name in changed if groups.get(name)}

    @property
    def errors(self) -> tuple[str, dict[str, float]]:
        """What relative errors are known, and these by weight."""
        recorded = self.of_kind("errors")
        if recorded:
            return "weights", _numbers(recorded[-1]["weights"])
        known = self.metadata.get("errors")
        for kind in ("outputs", "weights"):
            found = _numbers(known.get(kind)) if isinstance(known, Mapping) else {}
            if found:
                return kind, found
        return "weights", {}


def read_runs(folders: Iterable[str | Path]) -> list[ReportedRun]:
    """Read runs and checkpoints.

    Args:
        folders: one each, as ``quantize`` or ``tune`` wrote it; a run may still be going on.

    Raises:
        CheckpointError: if a folder is neither, or damaged.
        ValueError: if one is named twice.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import pvopt
        >>> from pvopt.formats import save
        >>> from pvopt.report import read_runs
        >>> folder, model = tempfile.mkdtemp(), torch.nn.Linear(8, 4)
        >>> _ = save(folder, model, pvopt.quantize_(model, pvopt.UniformGrid(bits=2)))
        >>> [run.state for run in read_runs([folder])]
        ['a checkpoint']
    """
    paths = [Path(folder) for folder in folders]
    known: dict[str, Path] = {}
    for path in paths:
        other = known.setdefault(os.path.realpath(path), path)
        if other is not path:
            raise ValueError(f"{path} is named twice")
    return [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _read(folder: Path, name: str) -> ReportedRun:
    is_run = os.path.lexists(folder / RECORDS)
    records = read_records(folder) if is_run else []
    checkpoint = find_checkpoint(folder)
    if checkpoint == folder and is_run:  # there is none yet
        if not records:
            raise CheckpointError(f"{folder / RECORDS}: holds no record of a run")
        starts = [record["metadata"] for record in records if record["kind"] == "start"]
        metadata = starts[-1] if starts else {}
        return ReportedRun(name=name, folder=folder, metadata=metadata, records=records)
    complete = complete_folder(checkpoint)
    kind = next((reader.name for reader in FORMATS.readers if reader.match(complete)), None)
    if kind is None:
        raise CheckpointError(f"{folder}: holds neither a run nor a checkpoint of pvopt")
    if kind != "native":
        raise CheckpointError(
            f"{folder}: is in the format {kind}; only runs and checkpoints of pvopt are shown"
        )
    return ReportedRun(
        name=name,
        folder=folder,
        metadata=read_metadata(checkpoint),
        storage=storage_report(checkpoint),
        records=records,
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Name folders by as few of their last parts as tell them apart."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for length in range(1, 1 + max(map(len, parts), default=0)):
        names = ["/".join(found[-length:]) for found in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _numbers(found: Any) -> dict[str, float]:
    if not isinstance(found, Mapping):
        return {}
    return {str(n): float(v) for n, v in found.items() if type(v) in (int, float)}
