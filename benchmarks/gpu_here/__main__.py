"""Everything that only a GPU can show, in one command for a machine without a package index.

``python -m benchmarks.gpu_here [--dry-run] [--only PART,PART] [--json FILE]``; `make gpu-here` runs
it with the Python that is there. Each part has its own time limit, and a part that fails does not
stop the others. ``--dry-run`` walks through every part on a CPU, with the smallest sizes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Check, Report, format_table, parser

__all__ = ["PARTS", "Part", "main"]

_TAIL = 4000  # characters of a part's output that are kept


@dataclass(frozen=True)
class Part:
    """One command.

    Args:
        name: as ``--only`` takes it.
        command: after the interpreter; ``{json}`` is where it may write.
        dry: what takes its place on a CPU.
        limit_s: seconds until it is stopped.
    """

    name: str
    command: tuple[str, ...]
    dry: tuple[str, ...]
    limit_s: int


_TESTS = ("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--maxfail", "40")
PARTS = (
    Part(
        "tests",
        (*_TESTS, "-n", "8", "tests/kernels"),
        (*_TESTS, "--collect-only", "tests/kernels/test_on_gpu.py"),
        200,
    ),
    Part(
        "kernels",
        ("-m", "benchmarks.kernels.gpu", "--json", "{json}"),
        ("-m", "benchmarks.kernels.gpu", "--help"),
        120,
    ),
    Part(
        "step",
        ("-m", "benchmarks.gpu_here.step", "--json", "{json}"),
        ("-m", "benchmarks.gpu_here.step", "--quick", "--device", "cpu", "--json", "{json}"),
        90,
    ),
    Part(
        "tune",
        ("-m", "benchmarks.gpu_here.tune", "--json", "{json}"),
        ("-m", "benchmarks.gpu_here.tune", "--quick", "--device", "cpu", "--json", "{json}"),
        60,
    ),
)


def _run(part: Part, dry: bool, folder: Path) -> dict[str, Any]:
    """Run a part; return its row, with whatever it measured."""
    file = folder / f"{part.name}.json"
    command = [word.format(json=file) for word in (part.dry if dry else part.command)]
    # Kernels are interpreted where there is no GPU.
    environment = os.environ | {"TRITON_INTERPRET": "1" if dry else "0", "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=part.limit_s,
            check=False,
        )
        status, output = str(done.returncode), done.stdout
    except subprocess.TimeoutExpired as error:
        status, output = "out of time", (error.stdout or b"").decode(errors="replace")
    row: dict[str, Any] = {
        "part": part.name,
        "command": " ".join(["python", *command]),
        "status": status,
        "seconds": time.perf_counter() - began,
        "output": output[-_TAIL:],
    }
    if file.exists():
        row["report"] = json.loads(file.read_text())
    return row


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"gpu": None}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = None
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "cuda": torch.version.cuda,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 if all of them ended well."""
    options = parser("gpu_here", (__doc__ or "").partition("\n")[0])
    options.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes")
    names = [part.name for part in PARTS]
    options.add_argument("--only", default=",".join(names), help="parts, separated by ','")
    chosen = options.parse_args(arguments)
    wanted = chosen.only.split(",")
    unknown = [name for name in wanted if name not in names]
    if unknown:
        options.error(f"unknown part {unknown[0]!r}; choose from {', '.join(names)}")
    if not (chosen.dry_run or torch.cuda.is_available()):
        print("no GPU: torch.cuda.is_available() is False (--dry-run works without)")
        return 1
    settings = {"dry_run": chosen.dry_run, **_gpu()}
    report = Report("gpu_here", settings, packages=("torch", "triton", "transformers", "numpy"))
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            if part.name not in wanted:
                continue
            row = _run(part, chosen.dry_run, Path(folder))
            report.rows.append(row)
            report.checks.append(
                Check(f"{part.name} ends well", row["seconds"], "status 0", row["status"] == "0")
            )
            if chosen.json:  # after every part: what was measured is kept
                report.write_json(chosen.json)
            print(f"== {row['command']}\n{row['output']}", flush=True)
    print(format_table(report.rows, {"part": "part", "status": "status", "seconds": "seconds"}))
    return 0 if all(check.holds for check in report.checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
