"""Curves of many steps as few points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MOST_POINTS", "thinned"]

#: More points than a chart has pixels to tell apart.
MOST_POINTS = 400


def thinned(
    records: Sequence[Mapping[str, Any]], fields: Sequence[str], most: int = MOST_POINTS
) -> list[dict[str, Any]]:
    """Return at most so many points, each the mean over consecutive steps.

    Args:
        records: with ``step`` and the fields, in order.
        fields: numbers, or None where one is not finite: a mean over such steps is None.
        most: points.

    Returns:
        Rows with the last ``step`` of each point and the fields.

    Example:
        >>> from pvopt.report.series import thinned
        >>> thinned([{"step": n, "loss": float(n)} for n in range(1, 7)], ["loss"], most=3)
        [{'step': 2, 'loss': 1.5}, {'step': 4, 'loss': 3.5}, {'step': 6, 'loss': 5.5}]
    """
    size = max(1, -(-len(records) // most))
    rows = []
    for start in range(0, len(records), size):
        chunk = records[start : start + size]
        row: dict[str, Any] = {"step": chunk[-1]["step"]}
        for name in fields:
            values = [record[name] for record in chunk]
            row[name] = None if None in values else sum(values) / len(values)
        rows.append(row)
    return rows
