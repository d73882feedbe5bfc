"""The formats of one family that differ in their bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from pvopt.parametrizations.scheme import Scheme

__all__ = ["candidates_near", "mean_bits"]

# What makes a format of a family larger.
_SIZES = ("num_codebooks", "bits")
_LARGEST = 16
# Candidates on each side of the bits that are wanted.
_EACH_SIDE = 2


def mean_bits(schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the true bits per weight of weights in their schemes.

    Args:
        schemes: by name.
        shapes: of the same weights.

    Example:
        >>> from pvopt import parse_scheme
        >>> from pvopt.allocation.candidates import mean_bits
        >>> grid = parse_scheme("grid:2g64s")
        >>> mean_bits({"w": grid}, {"w": (8, 64)})
        2.25
    """
    stored = sum(s.bits_per_weight(shapes[n]) * math.prod(shapes[n]) for n, s in schemes.items())
    return stored / sum(math.prod(shapes[name]) for name in schemes)


def candidates_near(
    scheme: Scheme, shapes: Iterable[tuple[int, ...]], bits: float
) -> dict[str, Scheme]:
    """Return formats like one, with fewer and with more bits: two on each side of what is wanted.

    Args:
        scheme: of any size; its codebooks or bits vary.
        shapes: of the weights that each of them has to fit.
        bits: per weight, scales and codebooks counted.

    Returns:
        Schemes by short name, the smallest first.

    Raises:
        ValueError: if the family has no size to vary, or none of its formats has so few bits or
            more.

    Example:
        >>> from pvopt import parse_scheme
        >>> from pvopt.allocation import candidates_near
        >>> list(candidates_near(parse_scheme("grid:4g64s"), [(128, 64)], 2.5))
        ['grid:1g64s', 'grid:2g64s', 'grid:3g64s', 'grid:4g64s']
    """
    parametrization: Any = scheme.parametrization  # a dataclass, as all are
    own = {field.name for field in fields(parametrization)}
    size = next((name for name in _SIZES if name in own), None)
    if size is None:
        raise ValueError(f"{scheme.name} has no number of bits or codebooks to vary")
    named = {str(number): shape for number, shape in enumerate(shapes)}
    found: list[tuple[float, Scheme]] = []
    for number in range(1, _LARGEST + 1):
        try:
            varied = replace(parametrization, **{size: number})
            other = replace(scheme, parametrization=varied)
            for shape in named.values():
                other.check(shape)
        except ValueError:  # the family ends here
            continue
        found.append((mean_bits(dict.fromkeys(named, other), named), other))
    found.sort(key=lambda pair: pair[0])
    below = [other for own_bits, other in found if own_bits <= bits][-_EACH_SIDE:]
    above = [other for own_bits, other in found if own_bits > bits][:_EACH_SIDE]
    if not below:
        least = f"at least {found[0][0]:.3f}" if found else "that the weights have"
        raise ValueError(f"bits must be {least} for formats like {scheme.name}, got {bits}")
    if not above:
        raise ValueError(
            f"bits must be less than {found[-1][0]:.3f}, the largest format like {scheme.name}, "
            f"got {bits}: quantize to {found[-1][1].name} alone"
        )
    return {other.name: other for other in (*below, *above)}
