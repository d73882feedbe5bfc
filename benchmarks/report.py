"""What every benchmark speaks: rows, checks against a target, a table and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Check", "Report", "format_table", "parser"]


@dataclass(frozen=True)
class Check:
    """A claim, the value measured, the target and whether it holds.

    ``note`` says why, where the claim does not hold or needs a word.
    """

    name: str
    value: float
    target: str
    holds: bool
    note: str = ""

    @classmethod
    def at_most(cls, name: str, value: float, limit: float, note: str = "") -> Check:
        """Return a check that a value does not exceed a limit.

        Example:
            >>> Check.at_most("gap", 0.5, 0.1).holds
            False
        """
        return cls(name, float(value), f"<= {limit:g}", bool(value <= limit), note)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float, note: str = "") -> Check:
        """Return a check that a value reaches a limit.

        Example:
            >>> Check.at_least("speedup", 2.5, 2.0).target
            '>= 2'
        """
        return cls(name, float(value), f">= {limit:g}", bool(value >= limit), note)


@dataclass
class Report:
    """Everything a benchmark measured.

    Args:
        benchmark: its name.
        settings: what it ran with: sizes, seeds, ``quick``.
        packages: distributions whose versions matter; absent ones are left out.
    """

    benchmark: str
    settings: dict[str, Any]
    packages: Sequence[str] = ("numpy", "scipy")
    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data, in the order readers expect.

        Example:
            >>> list(Report("demo", {"seed": 0}).as_dict())
            ['benchmark', 'versions', 'machine', 'settings', 'rows', 'checks']
        """
        return {
            "benchmark": self.benchmark,
            "versions": _versions(self.packages),
            "machine": _machine(),
            "settings": self.settings,
            "rows": self.rows,
            "checks": [asdict(check) for check in self.checks],
        }

    def write_json(self, path: str | Path) -> None:
        """Write the report; directories are made as needed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def format_checks(self) -> str:
        """Return the checks as lines of text, with the reason below each that has one."""
        lines = []
        for check in self.checks:
            verdict = "holds     " if check.holds else "DOES NOT  "
            lines.append(f"{verdict} {check.name}: {_cell(check.value)} (target {check.target})")
            if check.note:
                lines.append(f"{'':11}{check.note}")
        return "\n".join(lines)


def format_table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return rows as an aligned text table.

    Args:
        rows: mappings; a missing key gives an empty cell.
        columns: key of a row to heading.

    Example:
        >>> print(format_table([{"c": 2, "gap": 0.25}], {"c": "c", "gap": "gap"}))
        | c |  gap |
        |--:|-----:|
        | 2 | 0.25 |
    """
    rows = list(rows)
    cells = [[_cell(row.get(key, "")) for key in columns] for row in rows]
    text = [any(isinstance(row.get(key), str) for row in rows) for key in columns]
    widths = [
        max(len(line[i]) for line in [list(columns.values()), *cells]) for i in range(len(columns))
    ]
    rule = [
        "-" * (width + 2) if left else "-" * (width + 1) + ":"
        for width, left in zip(widths, text, strict=True)
    ]

    def line(parts: Sequence[str]) -> str:
        padded = [
            part.ljust(width) if left else part.rjust(width)
            for part, width, left in zip(parts, widths, text, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(list(columns.values())), "|" + "|".join(rule) + "|", *map(line, cells)])


def parser(benchmark: str, description: str) -> argparse.ArgumentParser:
    """Return the command line that every benchmark has; a benchmark may add to it.

    Example:
        >>> parser("demo", "Nothing.").parse_args(["--quick"]).quick
        True
    """
    result = argparse.ArgumentParser(f"python -m benchmarks.{benchmark}", description=description)
    result.add_argument("--quick", action="store_true", help="smaller sizes, for a first look")
    result.add_argument("--json", metavar="FILE", type=Path, help="write the report here")
    result.add_argument("--plots", metavar="DIR", type=Path, help="draw pictures into this folder")
    return result


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    """Return the model name, which :func:`platform.processor` lacks on Linux."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
