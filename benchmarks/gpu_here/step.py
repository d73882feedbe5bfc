"""A step of the optimizer on a device, beside fused AdamW on the same dense weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from benchmarks.report import Check, Report, format_table, parser
from benchmarks.step.setups import BLOCK, OPTIMIZERS, SEED, Weights
from benchmarks.timing import in_turns

# The linear layers of one of Llama-2-7B's 32 blocks, out by in: 202 M weights.
LLAMA_BLOCK = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
FUSED = "AdamW(fused=True)"
COMPARED = (FUSED, "PVOptimizer, no latents", "PVOptimizer, latents")
COLUMNS = {
    "work": "weights",
    "optimizer": "optimizer",
    "step_s": "s per step",
    "over_fused": "times fused AdamW",
    "peak_bytes": "peak bytes",
}


def _works(quick: bool) -> dict[str, tuple[list[tuple[int, int]], torch.dtype]]:
    if quick:
        return {"a block of SmolLM2-135M": (BLOCK, torch.float32)}
    return {
        "SmolLM2-135M": (BLOCK * 30, torch.float32),
        "4 of 32 blocks of Llama-2-7B": (LLAMA_BLOCK * 4, torch.bfloat16),
    }


def _measure(
    shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """Time every optimizer alone on the device: they would not fit side by side."""
    rows = []
    for name in COMPARED:
        weights = Weights.draw(shapes, device, dtype)
        optimizer: Optimizer = OPTIMIZERS[name](weights)
        optimizer.step()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run = _stepping(optimizer, device)
        timing = in_turns({name: run}, repeats=repeats)[name]
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        rows.append(
            {
                "optimizer": name,
                "step_s": timing.median_s,
                "over_fused": timing.median_s / rows[0]["step_s"] if rows else 1.0,
                "peak_bytes": peak,
                "weights": weights.count,
            }
        )
        del weights, optimizer, run
        gc.collect()
    return rows


def _stepping(optimizer: Optimizer, device: torch.device) -> Callable[[], None]:
    def run() -> None:
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 0."""
    options = parser("gpu_here.step", __doc__ or "")
    options.add_argument("--device", default="cuda")
    chosen = options.parse_args(arguments)
    device, repeats = torch.device(chosen.device), 3 if chosen.quick else 10
    settings = {"device": str(device), "seed": SEED, "repeats": repeats}
    report = Report("gpu_here.step", settings, packages=("torch", "triton"))
    for work, (shapes, dtype) in _works(chosen.quick).items():
        found = _measure(shapes, dtype, device, repeats)
        report.rows += [{"work": work, "dtype": str(dtype), **row} for row in found]
        report.checks += [
            Check.at_most(f"{work}, {row['optimizer']}: times fused AdamW", row["over_fused"], 3)
            for row in found[1:]
        ]
        if chosen.json:
            report.write_json(chosen.json)
    print(format_table(report.rows, COLUMNS))
    print(report.format_checks())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
