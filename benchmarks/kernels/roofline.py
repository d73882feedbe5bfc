"""What a GPU needs at least for each kernel, and how full the compiled kernel can keep it.

``python -m benchmarks.kernels --roofline [--quick] [--json FILE]``

No GPU is needed: bytes and operations are counted, kernels are compiled ahead of time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.bars import bars
from benchmarks.kernels.workloads import LAYERS, Layer, Work, workloads
from benchmarks.report import Report, format_table
from pvopt_kernels.tools.ahead_of_time import (
    TARGETS,
    CompileSpec,
    Resources,
    compile_spec,
    discover,
)

__all__ = ["GPUS", "Gpu", "floor", "report_of"]


@dataclass(frozen=True)
class Gpu:
    """Peak rates of a GPU.

    Args:
        name: of the GPU.
        target: what it is compiled for.
        memory: bytes per second.
        single: float32 operations per second, without tensor cores.
        tensor: 16-bit operations per second on tensor cores, dense.
        on_chip: bytes per second from first-level caches: 128 bytes per clock and multiprocessor.
    """

    name: str
    target: str
    memory: float
    single: float
    tensor: float
    on_chip: float


# NVIDIA A100 80GB SXM and H100 SXM5 data sheets; boost clocks 1.41 and 1.83 GHz, 108 and 132
# multiprocessors.
GPUS = [
    Gpu("A100", "sm_80", 2.039e12, 19.5e12, 312e12, 108 * 128 * 1.41e9),
    Gpu("H100", "sm_90", 3.35e12, 66.9e12, 989e12, 132 * 128 * 1.83e9),
]

COLUMNS = {
    "layer": "layer",
    "operation": "operation",
    "case": "case",
    "megabytes": "MB",
    "gigaoperations": "Gop",
    "A100_us": "A100 us",
    "A100_bound": "bound by",
    "A100_occupancy": "occupancy",
    "H100_us": "H100 us",
    "H100_bound": "bound by",
    "H100_occupancy": "occupancy",
}
VARIANT_COLUMNS = {
    "kernel": "kernel",
    "variant": "variant",
    "target": "target",
    "registers": "registers",
    "spills": "spills",
    "shared": "shared B",
    "blocks": "blocks",
    "occupancy": "occupancy",
}


def floor(work: Work, gpu: Gpu) -> tuple[float, str]:
    """Return the seconds that a GPU needs at least, and what takes them.

    Args:
        work: what has to be done.
        gpu: the peak rates.

    Example:
        >>> work = Work("copy", "", "", "", memory=2.039e12, operations=0)
        >>> floor(work, GPUS[0])
        (1.0, 'memory')
    """
    peak = gpu.tensor if work.tensor_cores else gpu.single
    needs = {
        "memory": work.memory / gpu.memory,
        "tensor cores" if work.tensor_cores else "arithmetic": work.operations / peak,
        "lookups": work.on_chip / gpu.on_chip,
    }
    bound = max(needs, key=lambda name: needs[name])
    return needs[bound], bound


class _Compiled:
    """What the variants use, compiled when first asked for."""

    def __init__(self) -> None:
        self.specs = [spec for specs in discover().values() for spec in specs]
        self.rows: dict[tuple[str, str, str], Resources] = {}

    def find(self, kernel: str, variant: str) -> CompileSpec | None:
        """Return the first spec of a kernel whose label begins with the variant's."""
        return next(
            (
                spec
                for spec in self.specs
                if spec.kernel.__name__ == kernel and spec.label.startswith(variant)
            ),
            None,
        )

    def resources(self, work: Work, target: str) -> Resources | None:
        """Return what the kernel of some work uses, or None if it has no Triton kernel."""
        spec = self.find(work.kernel, work.variant)
        if spec is None:
            return None
        key = (work.kernel, spec.label, target)
        if key not in self.rows:
            self.rows[key] = compile_spec(spec, TARGETS[target])
        return self.rows[key]

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each variant compiled so far."""
        return [
            {"kernel": kernel, "variant": label, "target": target, **asdict(used)}
            | {"occupancy": f"{used.occupancy:.0%}"}
            for (kernel, label, target), used in self.rows.items()
        ]


def row_of(layer: Layer, work: Work, compiled: _Compiled) -> dict[str, Any]:
    """Return the row of one operation on one layer."""
    row: dict[str, Any] = {
        "layer": f"{layer.model} {layer.name} {layer.rows}x{layer.columns}",
        **asdict(work),
        "megabytes": work.memory / 1e6,
        "gigaoperations": work.operations / 1e9,
    }
    for gpu in GPUS:
        seconds, bound = floor(work, gpu)
        used = compiled.resources(work, gpu.target)
        row |= {
            f"{gpu.name}_us": 1e6 * seconds,
            f"{gpu.name}_bound": bound,
            f"{gpu.name}_occupancy": "in torch" if used is None else f"{used.occupancy:.0%}",
        }
    return row


def report_of(
    *, quick: bool = False, json: Path | None = None, plots: Path | None = None
) -> Report:
    """Print the floors of all layers and the resources of the kernels.

    Args:
        quick: one layer only.
        json: file to write the report to, or None.
        plots: folder to draw a picture into, or None.
    """
    layers = LAYERS[:1] if quick else LAYERS
    peaks = {gpu.name: asdict(gpu) for gpu in GPUS}
    report = Report("kernels-roofline", {"quick": quick, "peaks": peaks}, ("torch", "triton"))
    compiled = _Compiled()
    for layer in layers:
        report.rows += [row_of(layer, work, compiled) for work in workloads(layer)]
    for gpu in GPUS:
        print(
            f"{gpu.name}: {gpu.memory / 1e12:.3g} TB/s, {gpu.single / 1e12:.3g} Top/s float32, "
            f"{gpu.tensor / 1e12:.3g} Top/s on tensor cores, {gpu.on_chip / 1e12:.3g} TB/s on chip"
        )
    print()
    print(format_table(report.rows, COLUMNS))
    print()
    print(format_table(compiled.table(), VARIANT_COLUMNS))
    report.settings["variants"] = compiled.table()
    if json:
        report.write_json(json)
    if plots:
        gpu, first = GPUS[0].name, report.rows[0]["layer"]
        rows = [row for row in report.rows if row["layer"] == first]
        named = [{**row, "name": f"{row['operation']} {row['case']}"} for row in rows]
        file, title = plots / "roofline.png", f"Least time on {gpu}, {first}"
        print(bars(named, "name", f"{gpu}_us", file, title=title, unit="us"))
    return report
