"""What quantizing a model would give and take, before any of its weights is read."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from pvopt.planning import StoredSize

from .selection import Choice
from .tables import print_table

if TYPE_CHECKING:
    from pvopt import Scheme

__all__ = ["dry_run"]

# Rows of the random weight that is fitted to learn how long a format takes.
_ROWS = 256


def dry_run(model: nn.Module, choice: Choice, *, calibrated: bool) -> None:
    """Print layers, bits, sizes and an estimate of memory and time.

    Args:
        model: of meta tensors.
        choice: what is quantized.
        calibrated: whether a text calibrates it.
    """
    schemes = {**choice.layers, **choice.outside}
    shapes = {name: tuple(model.get_parameter(name).shape) for name in schemes}
    rows = [
        [name, "x".join(map(str, shape)), scheme.name, f"{scheme.bits_per_weight(shape):.3f}"]
        for (name, scheme), shape in zip(schemes.items(), shapes.values(), strict=True)
    ]
    print_table(["weight", "shape", "format", "bits per weight"], rows)
    size = StoredSize.of(model, schemes)
    every = sum(p.numel() * p.element_size() for p in model.parameters())
    largest = max(map(math.prod, shapes.values()), default=0)
    print(
        f"\n{len(schemes)} weights, {choice.share(model):.0%} of the matrices: "
        f"{size.bits_per_weight:.3f} bits per quantized weight, {size.total_bits_per_weight:.3f} "
        f"over all {size.quantized + size.others:,} weights of the file"
    )
    # Beside the model: codes as they are computed with, and the target, the groups and the errors
    # of the largest weight.
    memory = every + size.quantized + 6 * 4 * largest
    print(f"model.safetensors about {size.bytes / 1e6:.1f} MB; memory about {memory / 1e9:.2f} GB")
    seconds = _seconds(schemes, shapes)
    text = "to fit without a text" if not calibrated else "for fits alone, calibration takes more"
    print(f"about {seconds:.0f} s on this machine {text}; nothing was written")


def _seconds(schemes: dict[str, Scheme], shapes: dict[str, tuple[int, ...]]) -> float:
    """Estimate how long all fits take, by one of a small random weight for each format."""
    total = 0.0
    for scheme in set(schemes.values()):
        own = [shapes[name] for name, used in schemes.items() if used == scheme]
        rows, *others = min(own, key=math.prod)
        shape = (_ROWS if rows % _ROWS == 0 else rows, *others)
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        scheme.fit(weight)  # the first one compiles
        start = time.perf_counter()
        scheme.fit(weight)
        total += (time.perf_counter() - start) * sum(map(math.prod, own)) / weight.numel()
    return total
