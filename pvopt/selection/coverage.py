"""What of a model is quantized, and what it takes as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pvopt.parametrizations.representation import Representation

from .layers import layer_weights

__all__ = ["Coverage", "DenseWeight"]


@dataclass(frozen=True)
class DenseWeight:
    """A parameter of two or more dimensions that is not quantized.

    Args:
        name: of the parameter.
        shape: of the parameter.
        reason: why.
    """

    name: str
    shape: tuple[int, ...]
    reason: str

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Coverage:
    """What of a model is quantized: ``str`` of it is a table.

    Args:
        quantized: number of weights by the names of quantized parameters.
        dense: the matrices that are left dense.
        others: number of weights in vectors and scalars.
        bits_per_weight: storage of the quantized weights, per weight.
        bits_per_parameter: storage of all parameters of the model, per parameter; dense ones at
            their present dtype.

    Example:
        >>> from torch import nn
        >>> from pvopt import SharedValues, quantize_
        >>> model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 16, bias=False))
        >>> coverage = quantize_(model, SharedValues(num_values=2)).coverage()
        >>> print(coverage)
        1 of 2 matrices are quantized, 80.0 % of their 160 weights: 1.50 bits per quantized \
weight, 7.60 per parameter of the model
        dense: 0.weight [4, 8], an embedding
    """

    quantized: Mapping[str, int]
    dense: tuple[DenseWeight, ...]
    others: int
    bits_per_weight: float
    bits_per_parameter: float

    @classmethod
    def of(
        cls,
        model: nn.Module,
        representations: Mapping[str, Representation],
        reasons: Mapping[str, str],
    ) -> Coverage:
        """Count the parameters of a model.

        Args:
            model: the module.
            representations: by the names of quantized parameters.
            reasons: why parameters are dense, by name, where that is known.
        """
        known = layer_weights(model)
        named = dict(model.named_parameters(remove_duplicate=False))
        quantized = {id(named[name]): name for name in representations}
        bits = sum(
            rep.bits_per_weight(shape=tuple(named[name].shape)) * named[name].numel()
            for name, rep in representations.items()
        )
        dense, everything, others, total = [], bits, 0, 0
        for name, parameter in model.named_parameters():
            total += parameter.numel()
            if id(parameter) in quantized:
                continue
            everything += parameter.numel() * 8 * parameter.element_size()
            weight = known.get(name)
            if weight is None or parameter.numel() == max(weight.shape):  # no matrix
                others += parameter.numel()
                continue
            reason = "no pattern names it" if weight.usual else weight.left
            dense.append(DenseWeight(name, weight.shape, reasons.get(name, reason)))
        sizes = {name: named[name].numel() for name in representations}
        return cls(
            quantized=sizes,
            dense=tuple(dense),
            others=others,
            bits_per_weight=bits / max(1, sum(sizes.values())),
            bits_per_parameter=everything / max(1, total),
        )

    @property
    def share(self) -> float:
        """Share of the weights of all matrices that is quantized, 1 where there are none."""
        found = sum(self.quantized.values())
        total = found + sum(weight.count for weight in self.dense)
        return found / total if total else 1.0

    def __str__(self) -> str:
        matrices = len(self.quantized) + len(self.dense)
        weights = sum(self.quantized.values()) + sum(weight.count for weight in self.dense)
        lines = [
            f"{len(self.quantized)} of {matrices} matrices are quantized, {100 * self.share:.1f} % "
            f"of their {weights:,} weights: {self.bits_per_weight:.2f} bits per quantized weight, "
            f"{self.bits_per_parameter:.2f} per parameter of the model"
        ]
        lines += [f"dense: {w.name} {list(w.shape)}, {w.reason}" for w in self.dense]
        return "\n".join(lines)
