"""The size of a quantized model in a file, and the formats that reach a size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pvopt.parametrizations.scheme import Scheme, parse_scheme
from pvopt.selection.schemes import select_schemes

__all__ = ["StoredSize", "formats_of_size"]

# The best of each family; the first ones tune best (benchmarks.frontier).
_FAMILIES = (
    "had+trellis:{bits}",
    "had+e8p:{bits}",
    "{bits}x8g8",
    "grid:{bits}g64",
    "grid:{bits}g128",
    "grid:{bits}g64s",
    "grid:{bits}g128s",
    "grid:{bits}",
    "q6+{bits}x8g8/64",
)
_OTHERS = ("vq:8g4", "1x16g8", "ternary", "ternary:g64", "binary", "binary:g64")
# How far a format may be from the bits that were asked for.
_NEAR = 0.3


@dataclass(frozen=True, kw_only=True)
class StoredSize:
    r"""What a model takes in a file.

    .. math:: \text{bytes} = \tfrac18 \sum_q b_q\, n_q + \sum_o s_o\, n_o

    over quantized weights of b bits per weight and all others, of s bytes.

    Args:
        quantized: number of quantized weights.
        quantized_bytes: that they take.
        others: number of all other weights.
        other_bytes: that these take at their present dtype.

    Example:
        >>> from torch import nn
        >>> from pvopt import parse_scheme
        >>> from pvopt.planning import StoredSize
        >>> model = nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(8, 2))
        >>> size = StoredSize.of(model, {"0.weight": parse_scheme("grid:2g64")})
        >>> size.bits_per_weight, size.others, size.other_bytes
        (2.5, 18, 72)
    """

    quantized: int
    quantized_bytes: float
    others: int
    other_bytes: int

    @classmethod
    def of(cls, model: nn.Module, schemes: Mapping[str, Scheme]) -> StoredSize:
        """Count the weights of a model, which may be of meta tensors.

        Args:
            model: any module.
            schemes: of its quantized weights, by parameter name.
        """
        quantized, bits, others = 0, 0.0, []
        for name, parameter in model.named_parameters():
            if name in schemes:
                quantized += parameter.numel()
                bits += schemes[name].bits_per_weight(tuple(parameter.shape)) * parameter.numel()
            else:
                others.append(parameter)
        return cls(
            quantized=quantized,
            quantized_bytes=bits / 8,
            others=sum(p.numel() for p in others),
            other_bytes=sum(p.numel() * p.element_size() for p in others),
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits per quantized weight."""
        return 8 * self.quantized_bytes / max(1, self.quantized)

    @property
    def total_bits_per_weight(self) -> float:
        """Bits per weight of the file."""
        return 8 * self.bytes / max(1, self.quantized + self.others)

    @property
    def bytes(self) -> float:
        """Size of the file of weights."""
        return self.quantized_bytes + self.other_bytes


def formats_of_size(model: nn.Module, bits: float) -> dict[str, StoredSize]:
    """Return the usual formats that store the layers of a model in about so many bits per weight.

    Args:
        model: any module; its tensors may be on the meta device.
        bits: per quantized weight, scales and codebooks counted.

    Returns:
        The size by the format's short name, the nearest to ``bits`` first; among equals the one
        that tunes best. Formats that do not fit the shapes of the layers are left out.

    Raises:
        ValueError: if ``bits`` is not positive, the model has no layer to quantize, or no format is
            near.

    Example:
        >>> from torch import nn
        >>> from pvopt.planning import formats_of_size
        >>> model = nn.Sequential(nn.Linear(256, 512, bias=False), nn.Linear(512, 4))
        >>> found = formats_of_size(model, 1.06)
        >>> next(iter(found)), round(found["binary"].bits_per_weight, 3)
        ('binary', 1.062)
    """
    if not 0 < bits < math.inf:
        raise ValueError(f"bits must be positive, got {bits}")
    heads = ("lm_head", "*.lm_head")
    if not select_schemes(model, {"*": parse_scheme("ternary")}, heads, optional=("*",)).chosen:
        raise ValueError("the model has no layer to quantize")
    whole = [n for n in range(1, 9) if abs(n - bits) < 1]
    names = [family.format(bits=n) for family in _FAMILIES for n in whole]
    found: dict[str, StoredSize] = {}
    for name in (*names, *_OTHERS):
        try:
            chosen = select_schemes(model, {"*": parse_scheme(name)}, heads)
        except ValueError:  # a family without this number of bits, groups that do not fit
            continue
        size = StoredSize.of(model, chosen.chosen)
        if abs(size.bits_per_weight - bits) <= _NEAR:
            found[name] = size
    if not found:
        raise ValueError(f"bits must be near the size of a format (1 to 8), got {bits}")
    return dict(sorted(found.items(), key=lambda item: abs(item[1].bits_per_weight - bits)))
