"""What a tuning run keeps of the weights between two steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvopt.parametrizations.scheme import Scheme
from pvopt.tuning.bases import Base

from .watch import MemoryWatch

__all__ = ["BaseCost", "code_bytes", "common_value_count", "value_count"]

# Sizes of small parameters: what the state has in common with them tells the real sizes.
_PRIMES = (61, 53, 7, 5, 3)


def code_bytes(schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the bytes of all codes as they are computed with.

    Args:
        schemes: of the quantized weights, by name.
        shapes: of the weights, by name.
    """
    streams = [s for n, scheme in schemes.items() for s in scheme.streams(shapes[n]).values()]
    return sum(stream.count * stream.dtype.itemsize for stream in streams)


def value_count(schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of continuous values, arguments as in :func:`code_bytes`."""
    sizes = [v for n, scheme in schemes.items() for v in scheme.value_shapes(shapes[n]).values()]
    return sum(map(math.prod, sizes))


def common_value_count(schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of values that all rows of a weight share, such as codebooks.

    Example:
        >>> from pvopt import parse_scheme
        >>> from pvopt.planning.states import common_value_count
        >>> common_value_count({"a": parse_scheme("2x8g8")}, {"a": (64, 64)})  # 2 * 256 * 8
        4096
    """
    return sum(
        math.prod(scheme.value_shapes(shapes[name])[value])
        for name, scheme in schemes.items()
        for value in scheme.parametrization.common_values or ()
    )


@dataclass(frozen=True)
class BaseCost:
    """What a base optimizer takes for parameters in float32, seen on small ones.

    Args:
        states: shapes and item sizes of what it keeps, by the number of dimensions.
        spare: bytes per entry that its step takes for a moment, beyond what it keeps.

    Example:
        >>> from pvopt.planning.states import BaseCost
        >>> from pvopt.tuning.bases import BASES
        >>> costs = [BaseCost.of(BASES[name]) for name in ("adam", "adafactor", "sgd")]
        >>> [cost.kept((100, 50)) for cost in costs]
        [40004, 604, 0]
        >>> [round(cost.spare, 1) for cost in costs]
        [0.0, 4.1, 0.0]
    """

    states: Mapping[int, tuple[tuple[tuple[int, ...], int], ...]]
    spare: float

    @classmethod
    def of(cls, base: Base) -> BaseCost:
        """Let an optimizer take two steps on small parameters.

        Args:
            base: makes the optimizer.
        """
        states, spare = {}, 0.0
        for dimensions in range(1, len(_PRIMES) + 1):
            small = _PRIMES[:dimensions]
            parameter = nn.Parameter(torch.zeros(small))
            parameter.grad = torch.ones(small)
            optimizer = base.make([parameter], lr=0.0)
            optimizer.step()
            kept = [t for t in optimizer.state[parameter].values() if isinstance(t, Tensor)]
            states[dimensions] = tuple((tuple(t.shape), t.element_size()) for t in kept)
            if dimensions == 2:
                with MemoryWatch() as watch:
                    optimizer.step()
                spare = watch.peak / parameter.numel()
        return cls(states, spare)

    def kept(self, shape: tuple[int, ...]) -> int:
        """Return the bytes that are kept for a parameter between steps."""
        real: dict[int, int] = dict(zip(_PRIMES, shape, strict=False))
        sizes = self.states[len(shape)]
        return sum(size * math.prod(real.get(n, n) for n in own) for own, size in sizes)
