"""What the lengths of steps on codes are measured by, of one weight and of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["CodeMemory", "Share", "padded"]


@dataclass(frozen=True, eq=False)
class CodeMemory:
    """What the lengths of steps on codes are measured by.

    Args:
        length: ``[matrices]``, of the next step.
        slopes: ``[matrices, 3]``, the inner product of gradient and change: before the last moves,
            and means before and after earlier ones.
        groups: ``[matrices, n]`` int64, selected in the last step.
        changes: ``[matrices, n, group_size]`` of these groups.
    """

    length: Tensor
    slopes: Tensor
    groups: Tensor
    changes: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, eq=False)
class Share:
    """What one of several weights has of a memory.

    Args:
        memory: of all of them.
        count: how many they are.
        place: of the weight among them.
        own: its part, views of the memory.
    """

    memory: CodeMemory
    count: int
    place: int
    own: CodeMemory


def padded(pairs: Sequence[tuple[Tensor, Tensor]], selected: int = 0) -> tuple[Tensor, Tensor]:
    """Join groups and their changes; of fewer groups than others, group 0 comes unchanged.

    Args:
        pairs: ``[matrices, n]`` groups and ``[matrices, n, group_size]`` changes of some weights.
        selected: the least number of groups.
    """
    selected = max(selected, max(groups.shape[1] for groups, _ in pairs))
    missing = [selected - groups.shape[1] for groups, _ in pairs]
    if any(missing):
        pairs = [
            (pad(groups, [0, n]), pad(changes, [0, 0, 0, n]))
            for (groups, changes), n in zip(pairs, missing, strict=True)
        ]
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([groups for groups, _ in pairs]), torch.cat([c for _, c in pairs])
