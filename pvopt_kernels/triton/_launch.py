"""Launching a kernel on the device of its tensors."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["interpreted", "launch", "least_columns"]


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **options: Any):
    """Run ``kernel[grid](*args, **options)`` on a device; nothing for an empty grid.

    Args:
        kernel: the function decorated by ``triton.jit`` or ``triton.autotune``.
        grid: numbers of programs.
        device: of the tensors; Triton launches on the current one.
        args: the kernel's arguments.
        options: constants by name, ``num_warps`` and ``num_stages``.
    """
    if 0 in grid:
        return
    # Fused multiply-adds are asked for by name: Triton warns that its default will change.
    options = {"enable_fp_fusion": True, **options}
    on_gpu = device.type == "cuda"  # what torch calls AMD's too
    with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
        kernel[grid](*args, **options)


def least_columns() -> int:
    """Return how many columns a product of float32 has at least, by the release of Triton."""
    import triton

    return 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 16


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    from triton import knobs

    return bool(knobs.runtime.interpret)
