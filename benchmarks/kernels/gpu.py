"""How fast are the kernels on this GPU, against torch on the same GPU and against the floor?

``python -m benchmarks.kernels.gpu [--quick] [--json FILE] [--plots DIR]``; `make gpu` runs it after
the tests. Without a GPU it says so and exits with status 1.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.bars import bars
from benchmarks.kernels.calls import call_of
from benchmarks.kernels.roofline import GPUS, floor
from benchmarks.kernels.workloads import LAYERS, Layer, Work, workloads
from benchmarks.report import Check, Report, format_table, parser
from pvopt_kernels.dispatch import available

__all__ = ["compare", "main"]

# Small enough for the references, and no size is a multiple of a tile.
CHECKED = Layer("check", "small", 136, 328)
# More than the second-level cache of any GPU: written between runs, so that inputs are not in it.
FLUSH_BYTES = 256 << 20
COLUMNS = {
    "layer": "layer",
    "operation": "operation",
    "case": "case",
    "median_us": "median us",
    "quartiles_us": "quartiles us",
    "reference_us": "torch us",
    "floor_us": "floor us",
    "of_floor": "times the floor",
}


@contextmanager
def _using(kind: str) -> Iterator[None]:
    """Choose the implementation for a while."""
    before = os.environ.get("PVOPT_KERNELS")
    os.environ["PVOPT_KERNELS"] = kind
    try:
        yield
    finally:
        if before is None:
            del os.environ["PVOPT_KERNELS"]
        else:
            os.environ["PVOPT_KERNELS"] = before


def compare(work: Work, layer: Layer, device: torch.device, kind: str) -> tuple[float, bool]:
    """Compare an implementation with the reference.

    Args:
        work: one of the layer's workloads.
        layer: a small layer.
        device: where to compute.
        kind: the implementation.

    Returns:
        The largest difference in units of the largest entry, and whether five runs were the same.
    """
    run = call_of(layer, work, device)
    with _using("reference"):
        expected = run().double()
    with _using(kind):
        results = [run() for _ in range(5)]
    same = all(torch.equal(results[0], result) for result in results[1:])
    scale = float(expected.abs().max()) or 1.0
    return float((results[0].double() - expected).abs().max()) / scale, same


def _time(run: Callable[[], Tensor], repeats: int) -> list[float]:
    """Return sorted seconds of runs with a cold second-level cache."""
    for _ in range(3):
        run()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    seconds = []
    for _ in range(repeats):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds)


def _row(layer: Layer, work: Work, repeats: int) -> dict[str, Any]:
    device = torch.device("cuda")
    run = call_of(layer, work, device)
    with _using("triton"):
        times = _time(run, repeats)
    row: dict[str, Any] = {
        "layer": f"{layer.model} {layer.name} {layer.rows}x{layer.columns}",
        "operation": work.operation,
        "case": work.case,
        "median_us": 1e6 * statistics.median(times),
        "quartiles_us": f"{1e6 * times[repeats // 4]:.3g} .. {1e6 * times[-1 - repeats // 4]:.3g}",
    }
    if work.operations < 1e11:  # the reference of a search would take minutes
        with _using("reference"):
            row["reference_us"] = 1e6 * statistics.median(_time(run, 5))
    name = torch.cuda.get_device_name()
    gpu = next((gpu for gpu in GPUS if gpu.name in name), None)
    if gpu is not None:
        seconds, row["bound"] = floor(work, gpu)
        row["floor_us"] = 1e6 * seconds
        row["of_floor"] = row["median_us"] / row["floor_us"]
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and time the kernels; return 0 if there is a GPU to do so."""
    options = parser("kernels.gpu", __doc__ or "").parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False; nothing was timed", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    settings = {"quick": options.quick, "gpu": torch.cuda.get_device_name()}
    report = Report("kernels-gpu", settings, packages=("torch", "triton"))
    for work in workloads(CHECKED):
        if "triton" in available(work.operation):
            error, same = compare(work, CHECKED, device, "triton")
            name = f"{work.operation} {work.case}"
            report.checks.append(Check.at_most(f"{name}: difference from torch", error, 2e-2))
            report.checks.append(Check.at_least(f"{name}: five runs are the same", same, 1))
    for layer in LAYERS[:1] if options.quick else LAYERS:
        for work in workloads(layer):
            if "triton" in available(work.operation):
                report.rows.append(_row(layer, work, repeats=20))
    print(format_table(report.rows, COLUMNS))
    print()
    print(report.format_checks())
    if options.json:
        report.write_json(options.json)
    if options.plots:
        named = [{**row, "name": f"{row['operation']} {row['case']}"} for row in report.rows]
        file, title = options.plots / "kernels-gpu.png", settings["gpu"]
        print(bars(named, "name", "median_us", file, title=title, unit="us"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
