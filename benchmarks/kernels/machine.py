"""What this machine can do: the floors that times are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.timing import in_turns

__all__ = ["Machine"]


@dataclass(frozen=True)
class Machine:
    """Rates of plain torch, with the threads that it uses.

    Args:
        read_bytes_per_s: of a sum over memory that no cache holds.
        copy_bytes_per_s: read and written, of a copy of such memory.
        flops_per_s: of a large float32 product; a multiplication and an addition count as two.
    """

    read_bytes_per_s: float
    copy_bytes_per_s: float
    flops_per_s: float

    @classmethod
    def measure(cls, *, quick: bool, clock: str) -> Machine:
        """Measure the rates in about a second."""
        source = torch.zeros((1 << 24) if quick else (1 << 27))  # 64 or 512 MiB
        target = torch.zeros_like(source)
        size = 1024
        square = torch.ones(size, size)
        runs: dict[str, Callable[[], object]] = {
            "read": source.sum,
            "copy": lambda: target.copy_(source),
            "product": lambda: square @ square,
        }
        for run in runs.values():
            run()
        times = in_turns(runs, repeats=5, clock=clock)
        return cls(
            read_bytes_per_s=source.nbytes / times["read"].median_s,
            copy_bytes_per_s=2 * source.nbytes / times["copy"].median_s,
            flops_per_s=2 * size**3 / times["product"].median_s,
        )
