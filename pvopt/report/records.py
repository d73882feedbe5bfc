"""The records of a run, checked: what a page is drawn from may be damaged or of somebody else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pvopt.formats import CheckpointError
from pvopt.formats.files import read_bytes
from pvopt.tuning.records import RECORDS

__all__ = ["read_records"]

_MOST_BYTES = 1 << 30


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read what a run has recorded.

    A last line that a killed or busy writer has not finished is passed over. Records of kinds that
    are not known are left out.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: if the file is missing, or a line is damaged.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.report.records import read_records
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "metrics.jsonl").write_text('{"kind": "step", "step": "one"}' + chr(10))
        >>> read_records(folder)
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...metrics.jsonl: line 1 is damaged (step is 'one')
    """
    content = read_bytes(folder, RECORDS, _MOST_BYTES)
    *lines, rest = content.split(b"\n")  # no writer ends without an end of line
    del rest
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                raise ValueError("it is no record")
            for name, holds in ({"step": _is_count} | _FIELDS.get(record["kind"], {})).items():
                if not holds(record.get(name)):
                    raise ValueError(f"{name} is {_shortened(record.get(name))}")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{os.path.join(folder, RECORDS)}: line {number} is damaged ({error})"
            ) from error
        if record["kind"] in _FIELDS:
            records.append(record)
    return records


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_counts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_count(part) for part in value.values())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_number_or_none(part) for part in value.values())


# What pages show of each kind of record.
_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "start": {"settings": _is_mapping, "metadata": _is_mapping},
    "step": {
        "loss": _is_number_or_none,
        "changed_groups": _is_count,
        "changed_fraction": _is_number,
        "lr_factor": _is_number,
        "forward_backward_s": _is_number,
        "optimizer_s": _is_number,
        "tokens_per_s": _is_number_or_none,
    },
    "evaluation": {
        "model": lambda value: value in ("student", "teacher"),
        "perplexity": _is_number_or_none,
        "divergence": _is_number_or_none,
        "agreement": _is_number_or_none,
    },
    "codes": {"changed": _are_counts, "groups": _are_counts},
    "errors": {"weights": _are_numbers},
}
