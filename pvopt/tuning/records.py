"""``metrics.jsonl``: one JSON object per line, one line per step or evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvopt.core.text_files import replace_text

__all__ = ["RECORDS", "RecordsFile", "StepRecord", "finite", "first_and_last"]

#: Name of the file in the folder of a run.
RECORDS = "metrics.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """What one step did.

    Args:
        loss: mean over the step's tokens, before the step, in nats.
        changed_groups: groups whose code changed, over all weights.
        changed_fraction: their share of all groups.
        forward_backward_s: seconds in both models' passes.
        optimizer_s: seconds in ``optimizer.step()``.
        tokens_per_s: tokens of the step by the seconds it took.
        lr_factor: what all learning rates were multiplied with.
    """

    loss: float
    changed_groups: int
    changed_fraction: float
    forward_backward_s: float
    optimizer_s: float
    tokens_per_s: float
    lr_factor: float


class RecordsFile:
    """Append records to a file, and read them back.

    Every record has ``kind`` and ``step``, the number of steps taken by then. The kinds are

    * ``start``, whenever a run begins or goes on: ``settings`` and ``metadata`` of the checkpoint;
    * ``step``: a :class:`StepRecord`;
    * ``evaluation``: ``model``, ``student`` or ``teacher``, ``perplexity``, and of the student
      before the first step and after the last ``divergence`` from the teacher and ``agreement``;
    * ``codes``: ``changed`` groups by weight since the record before, and all their ``groups``;
    * ``errors``: ``weights``, how far each is from the teacher's, ``||W - T|| / ||T||``.

    Args:
        path: the file; made by the first record.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.tuning import RecordsFile
        >>> records = RecordsFile(Path(tempfile.mkdtemp()) / "metrics.jsonl")
        >>> records.append("step", 1, loss=2.5)
        >>> records.read()
        [{'kind': 'step', 'step': 1, 'loss': 2.5}]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, kind: str, step: int, **values: Any) -> None:
        """Write one record; it is in the file when this returns."""
        # JSON has no infinity: a perplexity that overflows is null
        line = json.dumps({"kind": kind, "step": step, **finite(values)}, allow_nan=False)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all records; a line that a killed writer left unfinished is passed over."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"kind", "step"} <= record.keys():
                records.append(record)
        return records

    def forget_after(self, step: int) -> None:
        """Drop the records of later steps, which a resumed run is going to repeat."""
        if not self.path.exists():
            return
        lines = [json.dumps(record) for record in self.read() if record["step"] <= step]
        replace_text(self.path, "".join(line + "\n" for line in lines))


def first_and_last(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluation of the teacher, and the first and the last of the student.

    Example:
        >>> from pvopt.tuning.records import first_and_last
        >>> found = [{"kind": "evaluation", "step": n, "model": "student"} for n in range(4)]
        >>> [record["step"] for record in first_and_last(found)]
        [0, 3]
    """
    found = [dict(record) for record in records if record["kind"] == "evaluation"]
    student = [record for record in found if record["model"] == "student"]
    teacher = [record for record in found if record["model"] == "teacher"]
    return teacher[-1:] + student[:1] + student[1:][-1:]


def finite(value: Any) -> Any:
    """Return numbers, in mappings and lists as well, with None for those that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
