"""What does a step of the optimizer cost, beside AdamW on the same dense weights?

``python -m benchmarks.step [--quick] [--json FILE] [--plots DIR] [--clock wall|cpu] [--threads N]``
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch.optim import Optimizer

from benchmarks.bars import bars
from benchmarks.kernels.machine import Machine
from benchmarks.report import Check, Report, format_table, parser
from benchmarks.step.calls import calls_of
from benchmarks.step.memory import peak_beyond
from benchmarks.step.profile import PARTS, REST, parts_of
from benchmarks.step.setups import BLOCK, OPTIMIZERS, SEED, Weights, moved, square_layers
from benchmarks.timing import CLOCKS, in_turns

FUSED, PLAIN, LATENTS = "AdamW(fused=True)", "PVOptimizer, no latents", "PVOptimizer, latents"
TABLES = {
    "step": {
        "optimizer": "optimizer", "weights": "weights", "step_s": "s per step",
        "quartiles_s": "quartiles s", "over_fused": "times fused AdamW",
        "extra_tensors": "extra memory / weights",
    },
    "growth": {"optimizer": "optimizer", "weights": "weights", "step_s": "s per step",
               "ns_per_weight": "ns per weight"},
    "profile": {"part": "part", "part_s": "s per step", "floor_s": "floor s",
                "bytes_per_weight": "bytes per weight"},
    "calls": {"optimizer": "optimizer", "calls": "torch calls", "views": "of them views",
              "shapes": "shapes", "calls_per_shape": "calls per shape",
              "synchronisations": "host synchronisations"},
}  # fmt: skip


def timings(shapes: list[tuple[int, int]], clock: str, repeats: int) -> list[dict[str, object]]:
    """Time every optimizer that is installed, each on weights of its own."""
    running: dict[str, Optimizer] = {}
    memory: dict[str, float | None] = {}
    count = 0
    for name, make in OPTIMIZERS.items():
        own = Weights.draw(shapes)
        before = [parameter.detach().clone() for parameter in own.parameters]

        def start(name: str = name, make=make, own: Weights = own) -> None:
            running[name] = make(own)
            running[name].step()
            running[name].step()

        try:
            make(Weights.draw(BLOCK)).step()  # loads what is compiled
            extra = peak_beyond(start)
        except ImportError as problem:
            print(f"without {name}: {problem}")
            continue
        assert moved(own.parameters, before), f"{name} did not move every weight"
        memory[name] = None if extra is None else extra / own.dense_bytes
        count = own.count
    times = in_turns({n: o.step for n, o in running.items()}, repeats=repeats, clock=clock)
    return [
        {
            "table": "step",
            "optimizer": name,
            "weights": count,
            "step_s": timing.median_s,
            "low_s": timing.low_s,
            "high_s": timing.high_s,
            "repeats": timing.repeats,
            "quartiles_s": f"{timing.low_s:.3g} .. {timing.high_s:.3g}",
            "over_fused": timing.median_s / times[FUSED].median_s,
            "extra_tensors": memory[name],
        }
        for name, timing in times.items()
    ]


def growth(widths: list[int], clock: str) -> tuple[list[dict[str, object]], float]:
    """Time layers of growing width; return the rows and the exponent fitted to them."""
    rows: list[dict[str, object]] = []
    for width in widths:
        weights = Weights.draw(square_layers(width))
        optimizer = OPTIMIZERS[PLAIN](weights)
        optimizer.step()
        timing = in_turns({PLAIN: optimizer.step}, repeats=5, clock=clock)[PLAIN]
        rows.append(
            {
                "table": "growth",
                "optimizer": PLAIN,
                "weights": weights.count,
                "step_s": timing.median_s,
                "ns_per_weight": 1e9 * timing.median_s / weights.count,
            }
        )
    sizes = [math.log(float(str(row["weights"]))) for row in rows]
    seconds = [math.log(float(str(row["step_s"]))) for row in rows]
    return rows, float(np.polyfit(sizes, seconds, 1)[0])


def profile(
    shapes: list[tuple[int, int]], machine: Machine, clock: str, steps: int
) -> list[dict[str, object]]:
    """Return a row for each part of a step."""
    weights = Weights.draw(shapes)
    optimizer = OPTIMIZERS[PLAIN](weights)
    optimizer.step()
    found = parts_of(optimizer, steps=steps, clock=clock)
    rows: list[dict[str, object]] = []
    for part, seconds in found.items():
        bytes_per_weight = 0.0 if part == REST else PARTS[part][2]
        floor = bytes_per_weight * weights.count / machine.copy_bytes_per_s
        if part.startswith("search"):  # 1 % of the groups, six times the 256 entries
            floor = 0.01 * weights.count * 6 * 256 * 2 / machine.flops_per_s
        rows.append(
            {
                "table": "profile",
                "part": part,
                "part_s": seconds,
                "floor_s": floor,
                "bytes_per_weight": bytes_per_weight,
            }
        )
    return rows


def calls(shapes: list[tuple[int, int]]) -> list[dict[str, object]]:
    """Count what one step asks of torch; the weights of a shape are worked on together."""
    rows: list[dict[str, object]] = []
    for name in (FUSED, PLAIN, LATENTS):
        optimizer = OPTIMIZERS[name](Weights.draw(shapes))
        optimizer.step()
        optimizer.step()
        found, count = calls_of(optimizer.step), len(set(shapes))
        rows.append(
            {
                "table": "calls",
                "optimizer": name,
                "calls": found.total,
                "views": found.views,
                "shapes": count,
                "calls_per_shape": found.total / count,
                "synchronisations": found.synchronisations,
                "by_name": found.by_name,
            }
        )
    return rows


def checks_of(rows: list[dict[str, object]], exponent: float) -> list[Check]:
    """Return the targets."""
    found = {row["optimizer"]: row for row in rows if row["table"] == "step"}
    checks = []
    counted = {row["optimizer"]: row for row in rows if row["table"] == "calls"}
    for name, tensors in ((PLAIN, 2.0), (LATENTS, 3.0)):
        row = found[name]
        checks.append(Check.at_most(f"{name}: s per step", float(str(row["step_s"])), 0.8))
        over = float(str(row["over_fused"]))
        checks.append(Check.at_most(f"{name}: times fused AdamW", over, 4.5))
        if row["extra_tensors"] is not None:
            extra = float(str(row["extra_tensors"]))
            # So many tensors of state, and 0.05 for the moments of the values (0.02) and for what
            # one stack takes for a moment.
            claim = f"{name}: peak memory in tensors of the weights' size"
            checks.append(Check.at_most(claim, extra, tensors + 0.05))
        per_shape = float(str(counted[name]["calls_per_shape"]))
        checks.append(Check.at_most(f"{name}: torch calls per step and shape", per_shape, 60))
        waits = float(str(counted[name]["synchronisations"]))
        checks.append(Check.at_most(f"{name}: host synchronisations per step", waits, 0))
    checks.append(Check.at_most("exponent of the time over the weights", exponent, 1.05))
    return checks


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run everything, print tables and checks, write what was asked for."""
    options = parser("step", __doc__ or "")
    options.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--repeats", type=int, default=20)
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    machine = Machine.measure(quick=chosen.quick, clock=chosen.clock)
    shapes = BLOCK * (2 if chosen.quick else 30)
    settings = {
        "quick": chosen.quick,
        "clock": chosen.clock,
        "threads": chosen.threads,
        "seed": SEED,
        **asdict(machine),
    }
    report = Report("step", settings, packages=("torch", "numpy", "numba", "torchao"))
    report.rows += timings(shapes, chosen.clock, chosen.repeats)
    report.rows += profile(shapes, machine, chosen.clock, steps=3)
    report.rows += calls(shapes)
    widths = [384, 768] if chosen.quick else [384, 768, 1536, 3072, 7552]  # 1 M to 399 M
    rows, exponent = growth(widths, chosen.clock)
    report.rows += rows
    report.checks = checks_of(report.rows, exponent)
    for table, columns in TABLES.items():
        print(format_table((row for row in report.rows if row["table"] == table), columns))
        print()
    print(report.format_checks())
    if chosen.json:
        report.write_json(chosen.json)
    if chosen.plots:
        found = [row for row in report.rows if row["table"] == "profile"]
        title = "Where the time of a step goes"
        print(bars(found, "part", "part_s", chosen.plots / "step.png", title=title, unit="s"))
    return report


if __name__ == "__main__":
    main()
