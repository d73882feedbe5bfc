"""Nested random subspaces: a larger fraction of one draw contains every smaller one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout
from pvopt.rules.subspace import Uniform

from .vectors import Vector


class NestedSubspaces:
    """One draw of random coordinates or groups of every parameter, at several fractions.

    As in a V step, each parameter gives its own share: ``ceil(fraction * n)`` of its n units.

    Args:
        parameters: the weights.
        fractions: shares in (0, 1], ascending.
        layouts: how each parameter is cut into groups that are drawn as a whole; None:
            coordinates are drawn.
        generator: of the draws.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        fractions: Sequence[float],
        layouts: Sequence[GroupLayout] | None,
        generator: torch.Generator,
    ) -> None:
        # Per coordinate, the number of the smallest subset that has it: a byte instead of a mask
        # for every fraction.
        self._levels: list[Tensor] = []
        for i, parameter in enumerate(parameters):
            layout = None if layouts is None else layouts[i]
            n = parameter.numel() if layout is None else layout.num_groups
            order = torch.randperm(n, generator=generator, device=generator.device)
            level = torch.full((n,), len(fractions), dtype=torch.uint8, device=generator.device)
            for number in reversed(range(len(fractions))):
                level[order[: Uniform(fractions[number]).count(n)]] = number
            if layout is None:
                level = level.view(parameter.shape)
            else:
                level = layout.merge(level[:, None].expand(-1, layout.group_size))
            self._levels.append(level.to(parameter.device))

    def masks(self, number: int) -> list[Tensor]:
        """Return which coordinates belong to the subset of fraction ``number``, as booleans."""
        return [level <= number for level in self._levels]

    def project_(self, vector: Vector, number: int) -> Vector:
        """Set the coordinates outside the subset of fraction ``number`` to zero, in place."""
        for tensor, level in zip(vector, self._levels, strict=True):
            tensor.masked_fill_(level > number, 0)
        return vector
